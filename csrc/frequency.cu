#include "cuda.cuh"
#include "frequency.h"

namespace lightning_nerf::frequency {
namespace {

// A block encodes `tile` rows in shared memory, so that global memory is read and written in order, 16 bytes a thread. A
// thread keeps its frequency and its axis for all of its rows: no index is divided within the loops, and neighboring
// threads touch neighboring columns.
constexpr int kTileFloats = 4096;  // 16 KiB of shared memory: it does not limit the number of warps
constexpr int kMaxTile = 256;      // rows

// Rows of a block, a multiple of 4: each tile begins at a multiple of 16 bytes. 0: the rows are too wide.
int tile_rows(const Layout& l) {
  const int rows = kTileFloats / l.width() / 4 * 4;
  return rows < kMaxTile ? rows : kMaxTile;
}

int shared_bytes(const Layout& l, int tile) { return tile * (l.width() + l.dims) * int(sizeof(float)); }

__device__ __forceinline__ float power_of_two(int k) { return float(uint64_t(1) << k); }  // k < 64

// Of the angle scaled * power, exact sincosf and not __sincosf: angles reach thousands.
__device__ __forceinline__ void sine_and_cosine(float scaled, float power, float* sine, float* cosine) {
  sincosf(scaled * power, sine, cosine);
}

// d loss / d scaled of one frequency, from those of its sine and cosine.
__device__ __forceinline__ float pair_backward(float scaled, float power, float grad_sine, float grad_cosine) {
  float sine, cosine;
  sine_and_cosine(scaled, power, &sine, &cosine);
  return power * (cosine * grad_sine - sine * grad_cosine);
}

// body(row, axis, pair, power) for each sine and cosine of `rows` rows, by the whole block.
template <typename Body>
__device__ __forceinline__ void for_each_pair(const Layout& l, int rows, const Body& body) {
  const int pairs = l.pairs(), lanes = min(pairs, kThreads), side = kThreads / lanes;
  const int lane = threadIdx.x % lanes, first = threadIdx.x / lanes;
  if (first >= side) return;
  for (int pair = lane; pair < pairs; pair += lanes) {
    const int axis = pair % l.dims;
    const float power = power_of_two(pair / l.dims);
#pragma unroll 2
    for (int row = first; row < rows; row += side) body(row, axis, pair, power);
  }
}

// n floats between global and shared memory, by the whole block; 16 bytes a thread, unless a caller's tensor begins askew.
__device__ __forceinline__ void copy(const float* __restrict__ from, int n, float* __restrict__ to) {
  const bool aligned = (reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) % sizeof(float4) == 0;
  const int quads = aligned ? n / 4 : 0;
  for (int i = threadIdx.x; i < quads; i += kThreads)
    reinterpret_cast<float4*>(to)[i] = reinterpret_cast<const float4*>(from)[i];
  for (int i = 4 * quads + threadIdx.x; i < n; i += kThreads) to[i] = from[i];
}

// A block's rows. The kernels' shared memory holds their numbers [tile, width], then their coordinates [tile, dims].
struct Tile {
  int64_t begin;
  int present, encoded;  // rows that exist, rows before the count
  float *rows, *x;

  __device__ __forceinline__ Tile(const Arguments& a, int tile, float4* shared) : begin(blockIdx.x * int64_t(tile)) {
    present = int(min(a.n - begin, int64_t(tile)));
    encoded = int(max(min(used_rows(a.n, a.count) - begin, int64_t(present)), int64_t(0)));
    rows = reinterpret_cast<float*>(shared);
    x = rows + tile * a.layout.width();
    copy(a.x + begin * a.layout.dims, encoded * a.layout.dims, x);
  }
};

__global__ void forward_kernel(Arguments a, int tile, float* __restrict__ out) {  // out [n, width]
  extern __shared__ float4 shared[];
  const Layout l = a.layout;
  const int width = l.width(), sines = l.sines(), cosines = l.cosines();
  const Tile t(a, tile, shared);
  __syncthreads();
  for_each_pair(l, t.encoded, [&](int row, int axis, int pair, float power) {
    const float x = t.x[row * l.dims + axis];
    float* to = t.rows + row * width;
    if (l.include_input && pair < l.dims) to[pair] = x;
    sine_and_cosine(x * l.scale, power, &to[sines + pair], &to[cosines + pair]);
  });
  for (int i = t.encoded * width + threadIdx.x; i < t.present * width; i += kThreads) t.rows[i] = 0.0f;
  __syncthreads();
  copy(t.rows, t.present * width, out + t.begin * width);
}

__global__ void backward_kernel(
    Arguments a, int tile,
    const float* __restrict__ grad,  // [n, width]
    float* __restrict__ grad_x) {    // [n, dims]
  extern __shared__ float4 shared[];
  const Layout l = a.layout;
  const int width = l.width(), sines = l.sines(), cosines = l.cosines();
  const Tile t(a, tile, shared);
  copy(grad + t.begin * width, t.encoded * width, t.rows);
  __syncthreads();
  for_each_pair(l, t.encoded, [&](int row, int axis, int pair, float power) {
    float* grads = t.rows + row * width;  // a sine's gradient makes room for its share of the sum
    const float scaled = t.x[row * l.dims + axis] * l.scale;
    grads[sines + pair] = pair_backward(scaled, power, grads[sines + pair], grads[cosines + pair]);
  });
  __syncthreads();
  for (int i = threadIdx.x; i < t.present * l.dims; i += kThreads) {
    const int row = i / l.dims, axis = i % l.dims;
    float result = 0.0f;
    if (row < t.encoded) {
      const float* shares = t.rows + row * width;
      float sum = 0.0f;
      for (int k = 0; k < l.n_frequencies; ++k) sum += shares[sines + k * l.dims + axis];
      result = l.scale * sum + (l.include_input ? shares[axis] : 0.0f);
    }
    grad_x[t.begin * l.dims + i] = result;
  }
}

// Rows too wide for a tile, of many dimensions: a thread per coordinate, in order along the axes.
__global__ void wide_forward_kernel(Arguments a, float* __restrict__ out) {  // out [n, width]
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  const Layout l = a.layout;
  if (i >= a.n * l.dims) return;
  const int64_t row = i / l.dims;
  const int axis = int(i % l.dims);
  const bool used = row < used_rows(a.n, a.count);
  const float x = used ? a.x[i] : 0.0f;
  float* to = out + row * l.width();
  if (l.include_input) to[axis] = x;
  for (int k = 0, column = axis; k < l.n_frequencies; ++k, column += l.dims) {
    float sine = 0.0f, cosine = 0.0f;
    if (used) sine_and_cosine(x * l.scale, power_of_two(k), &sine, &cosine);
    to[l.sines() + column] = sine;
    to[l.cosines() + column] = cosine;
  }
}

__global__ void wide_backward_kernel(
    Arguments a,
    const float* __restrict__ grad,  // [n, width]
    float* __restrict__ grad_x) {    // [n, dims]
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  const Layout l = a.layout;
  if (i >= a.n * l.dims) return;
  const int64_t row = i / l.dims;
  const int axis = int(i % l.dims);
  float result = 0.0f;
  if (row < used_rows(a.n, a.count)) {
    const float* grads = grad + row * l.width();
    const float scaled = a.x[i] * l.scale;
    float sum = 0.0f;
    for (int k = 0, column = axis; k < l.n_frequencies; ++k, column += l.dims)
      sum += pair_backward(scaled, power_of_two(k), grads[l.sines() + column], grads[l.cosines() + column]);
    result = l.scale * sum + (l.include_input ? grads[axis] : 0.0f);
  }
  grad_x[i] = result;
}

void forward(const Tensor& like, const Arguments& a, float* out) {
  const Launch launch(like);
  if (a.n == 0) return;
  const Layout& l = a.layout;
  if (const int tile = tile_rows(l); tile > 0) {
    forward_kernel<<<blocks(a.n, tile), kThreads, shared_bytes(l, tile), launch.stream>>>(a, tile, out);
  } else {
    wide_forward_kernel<<<blocks(a.n * l.dims), kThreads, 0, launch.stream>>>(a, out);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void backward(const Tensor& like, const Arguments& a, const float* grad, float* grad_x) {
  const Launch launch(like);
  if (a.n == 0) return;
  const Layout& l = a.layout;
  if (const int tile = tile_rows(l); tile > 0) {
    backward_kernel<<<blocks(a.n, tile), kThreads, shared_bytes(l, tile), launch.stream>>>(a, tile, grad, grad_x);
  } else {
    wide_backward_kernel<<<blocks(a.n * l.dims), kThreads, 0, launch.stream>>>(a, grad, grad_x);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("frequency", TORCH_BOX(&frequency<forward>));
  m.impl("frequency_backward", TORCH_BOX(&frequency_backward<backward>));
}

}  // namespace lightning_nerf::frequency
