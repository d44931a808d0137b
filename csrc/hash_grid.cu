#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda.cuh"
#include "hash_grid.h"

namespace lightning_nerf::hash_grid {
namespace {

// A block serves the levels that fill 8 values of its samples' output rows. Groups of levels are the slow grid dimension:
// while blocks of one group run, only its part of the table competes for the caches.
constexpr int kValues = 8;
template <int F>
constexpr int kLevels = kValues / F;

constexpr int kPairs = kThreads / 2;
constexpr int kRun = 8;               // consecutive samples that one thread of the backward pass sums
constexpr int64_t kMaxBlocks = 2048;  // about 16 per multiprocessor; each reads its levels once

// Four values in one store: the compiler makes several of an assignment here.
__device__ __forceinline__ void store4(float* out, const float* v) {
  __stwb(reinterpret_cast<float4*>(out), make_float4(v[0], v[1], v[2], v[3]));
}
template <typename Pair>
__device__ __forceinline__ void store4(void* out, Pair low, Pair high) {
  __stwb(static_cast<uint2*>(out), make_uint2(*reinterpret_cast<uint32_t*>(&low), *reinterpret_cast<uint32_t*>(&high)));
}
__device__ __forceinline__ void store4(__half* out, const float* v) {
  store4(out, __floats2half2_rn(v[0], v[1]), __floats2half2_rn(v[2], v[3]));
}
__device__ __forceinline__ void store4(__nv_bfloat16* out, const float* v) {
  store4(out, __floats2bfloat162_rn(v[0], v[1]), __floats2bfloat162_rn(v[2], v[3]));
}

template <typename T>
__device__ __forceinline__ void store_up_to_4(T* out, const float* values, int count, bool aligned) {
  if (aligned) {
    store4(out, values);
  } else {
#pragma unroll
    for (int v = 0; v < 4; ++v)
      if (v < count) out[v] = T(values[v]);
  }
}

template <int D, int F, typename T>
__global__ void forward_kernel(
    const float* __restrict__ positions,  // [n, D]
    const T* __restrict__ table,          // [n_rows, F]
    const int32_t* __restrict__ levels,   // [n_levels, 3]
    int64_t n, int64_t n_rows, int n_levels, ScalarType dtype,
    void* __restrict__ out) {  // [n, n_levels, F] of dtype
  constexpr int L = kLevels<F>, kHalf = kValues / 2;
  static_assert(kHalf == 4);
  __shared__ Level shared[L];
  const int first = blockIdx.y * L, count = min(L, n_levels - first);
  read_levels<D>(levels, first, count, n_rows, shared);
  const int side = pair_side();
  const bool aligned = n_levels % L == 0;  // rows of whole groups

  for (int64_t begin = blockIdx.x * int64_t(kPairs); begin < n; begin += gridDim.x * int64_t(kPairs)) {
    const int64_t i = begin + threadIdx.x / 2;
    const int64_t at = i < n ? i : n - 1;  // lanes without a sample stay: pairs exchange their sums
    float x[D];
#pragma unroll
    for (int d = 0; d < D; ++d) x[d] = clamp_to_unit(positions[at * D + d]);

    float sum[kValues] = {};
#pragma unroll
    for (int k = 0; k < L; ++k) {
      if (k >= count) break;
      interpolate<D, F, 2>(table, shared[k], face<D>(locate<D>(x, shared[k]), side), sum + k * F);
    }

    float mine[kHalf];  // the even lane's are the first half of the pair's values
#pragma unroll
    for (int v = 0; v < kHalf; ++v) {
      const float other = __shfl_xor_sync(kFullWarp, side ? sum[v] : sum[v + kHalf], 1);
      mine[v] = (side ? sum[v + kHalf] : sum[v]) + other;
    }
    if (i >= n) continue;
    const int64_t row = (i * n_levels + first) * F + side * kHalf;
    const int left = count * F - side * kHalf;
    if (dtype == ScalarType::Float) {
      store_up_to_4(static_cast<float*>(out) + row, mine, left, aligned);
    } else if (dtype == ScalarType::Half) {
      store_up_to_4(static_cast<__half*>(out) + row, mine, left, aligned);
    } else {
      store_up_to_4(static_cast<__nv_bfloat16*>(out) + row, mine, left, aligned);
    }
  }
}

// Sums rows of gradients in float32, in any order.
struct FloatSums {
  float* rows;  // [n_rows, F]

  __device__ void begin() {}

  template <int F>
  __device__ __forceinline__ void add(int64_t row, const float* value) const {
    atomic_add<F>(rows + row * F, value);
  }
};

// The power of two that maps a sum of n values of at most `largest` to less than 2^62; 0 where all values are 0.
__device__ __forceinline__ double fixed_scale(uint32_t largest_bits, int64_t n) {
  const float largest = __uint_as_float(largest_bits);
  return largest > 0.0f ? scalbn(1.0, 62 - (64 - __clzll(n)) - (ilogbf(largest) + 1)) : 0.0;
}

constexpr uint32_t kInfinityBits = 0x7F800000u;

// Sums rows in 64-bit fixed point, whose sums do not depend on their order.
struct FixedSums {
  unsigned long long* rows;  // [n_rows, F]
  const uint32_t* largest;   // [1] bits of the largest magnitude of a gradient
  int64_t n;
  double scale;

  __device__ void begin() { scale = *largest < kInfinityBits ? fixed_scale(*largest, n) : 0.0; }

  template <int F>
  __device__ __forceinline__ void add(int64_t row, const float* value) const {
#pragma unroll
    for (int f = 0; f < F; ++f)
      atomicAdd(rows + row * F + f, static_cast<unsigned long long>(__double2ll_rn(double(value[f]) * scale)));
  }
};

__global__ void largest_kernel(
    const float* __restrict__ grad,  // [size]
    int64_t size,
    uint32_t* __restrict__ largest) {  // [1], zero before; NaN's bits are larger than infinity's
  uint32_t bits = 0;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < size; i += gridDim.x * int64_t(blockDim.x))
    bits = max(bits, __float_as_uint(grad[i]) & 0x7FFFFFFFu);
  for (int offset = 16; offset > 0; offset /= 2) bits = max(bits, __shfl_xor_sync(kFullWarp, bits, offset));
  if (threadIdx.x % 32 == 0) atomicMax(largest, bits);
}

__global__ void fixed_to_float_kernel(
    const long long* __restrict__ sums,  // [size]
    const uint32_t* __restrict__ largest, int64_t n, int64_t size,
    float* __restrict__ out) {  // [size]
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= size) return;
  if (*largest >= kInfinityBits) {
    out[i] = __uint_as_float(0x7FC00000u);  // one gradient was not finite
  } else {
    out[i] = *largest > 0 ? float(double(sums[i]) / fixed_scale(*largest, n)) : 0.0f;
  }
}

// Lanes of a warp: two sides, then levels, then runs of samples.
template <int D, int F, typename G, typename Sums>
__global__ void backward_table_kernel(
    const G* __restrict__ grad,           // [n, n_levels, F]
    const float* __restrict__ positions,  // [n, D]
    const int32_t* __restrict__ levels,   // [n_levels, 3]
    int64_t n, int64_t n_rows, int n_levels, Sums sums) {
  constexpr int L = kLevels<F>, kBatch = 4, kSamples = kPairs / L * kRun;
  static_assert(kRun % kBatch == 0);
  __shared__ Level shared[L];
  const int first = blockIdx.y * L, count = min(L, n_levels - first);
  read_levels<D>(levels, first, count, n_rows, shared);
  const int side = pair_side(), k = threadIdx.x / 2 % L;
  if (k >= count) return;
  const Level level = shared[k];
  sums.begin();
  const auto add_row = [&](int64_t row, const float* value) { sums.template add<F>(row, value); };

  for (int64_t begin = blockIdx.x * int64_t(kSamples); begin < n; begin += gridDim.x * int64_t(kSamples)) {
    FaceSum<D, F> sum;
    const int64_t run = begin + threadIdx.x / (2 * L) * kRun;
#pragma unroll 1
    for (int64_t i = run; i < min(run + kRun, n); i += kBatch) {
      Features<G, F> g[kBatch];
      float x[kBatch * D];
      if (i + kBatch <= n) {
#pragma unroll
        for (int j = 0; j < kBatch; ++j) g[j] = load<F>(grad + ((i + j) * n_levels + first + k) * F);
#pragma unroll
        for (int d = 0; d < D; ++d) {
          const Features<float, kBatch> loaded = load<kBatch>(positions + i * D + d * kBatch);
#pragma unroll
          for (int j = 0; j < kBatch; ++j) x[d * kBatch + j] = loaded.value[j];
        }
      } else {
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const bool exists = i + j < n;
          if (exists) g[j] = load<F>(grad + ((i + j) * n_levels + first + k) * F);
#pragma unroll
          for (int f = 0; f < F; ++f)
            if (!exists) g[j].value[f] = G(0.0f);
#pragma unroll
          for (int d = 0; d < D; ++d) x[j * D + d] = exists ? positions[(i + j) * D + d] : 0.0f;
        }
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        float value[F], point[D];
        bool zero = true;
#pragma unroll
        for (int f = 0; f < F; ++f) {
          value[f] = float(g[j].value[f]);
          zero &= value[f] == 0.0f;
        }
        if (zero) continue;  // dropped samples cost nothing
#pragma unroll
        for (int d = 0; d < D; ++d) point[d] = clamp_to_unit(x[j * D + d]);
        sum.add(level, face<D>(locate<D>(point, level), side), value, add_row);
      }
    }
    sum.flush(level, add_row);
  }
}

template <int F>
__device__ __forceinline__ void load_as_float(const void* __restrict__ p, ScalarType dtype, int64_t at, float* value) {
  const auto convert = [&](const auto* typed) {
    const auto loaded = load<F>(typed + at);
#pragma unroll
    for (int f = 0; f < F; ++f) value[f] = float(loaded.value[f]);
  };
  if (dtype == ScalarType::Float) {
    convert(static_cast<const float*>(p));
  } else if (dtype == ScalarType::Half) {
    convert(static_cast<const __half*>(p));
  } else {
    convert(static_cast<const __nv_bfloat16*>(p));
  }
}

template <int D, int F, typename T>
__global__ void backward_positions_kernel(
    const void* __restrict__ grad, ScalarType dtype,  // [n, n_levels, F] of dtype
    const float* __restrict__ positions,              // [n, D]
    const T* __restrict__ table,                      // [n_rows, F]
    const int32_t* __restrict__ levels,               // [n_levels, 3]
    int64_t n, int64_t n_rows, int n_levels,
    float* __restrict__ grad_positions) {  // [n, D]
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= n) return;
  float x[D], sum[D] = {};
  for (int d = 0; d < D; ++d) x[d] = clamp_to_unit(positions[i * D + d]);
#pragma unroll 1
  for (int l = 0; l < n_levels; ++l) {
    float g[F];
    load_as_float<F>(grad, dtype, (i * n_levels + l) * F, g);
    bool zero = true;
#pragma unroll
    for (int f = 0; f < F; ++f) zero &= g[f] == 0.0f;
    if (zero) continue;
    Level level;
    if (!read_level<D>(levels + 3 * l, n_rows, level)) __trap();
    const Cell<D> cell = locate<D>(x, level);
    float slope[D] = {};
#pragma unroll
    for (int c = 0; c < 1 << D; ++c) {
      const uint32_t at = level.hashed ? corner_row<D, true>(cell, level, c) : corner_row<D, false>(cell, level, c);
      const Features<T, F> row = load<F>(table + (level.offset + at) * F);
      float grad_weight = 0.0f;
#pragma unroll
      for (int f = 0; f < F; ++f) grad_weight += g[f] * float(row.value[f]);
#pragma unroll
      for (int d = 0; d < D; ++d) slope[d] += grad_weight * corner_slope<D>(cell, c, d);
    }
    for (int d = 0; d < D; ++d) sum[d] += level.scale * slope[d];
  }
  for (int d = 0; d < D; ++d) grad_positions[i * D + d] = inside_unit(positions[i * D + d]) ? sum[d] : 0.0f;
}

// body(T()) for a tensor's type, one of the three that the checks let pass.
template <typename Body>
void for_type(const Tensor& t, const Body& body) {
  switch (t.scalar_type()) {
    case ScalarType::Half: return body(__half());
    case ScalarType::BFloat16: return body(__nv_bfloat16());
    default: return body(float());
  }
}

// Loads of whole rows need rows aligned to their size; a view into a flat buffer may not be.
Tensor aligned(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0 ? t : torch::stable::clone(t);
}

// Blocks that each take tiles of `samples`, for each group of `levels_per_block` levels.
dim3 grid(int64_t n, int samples, int64_t n_levels, int levels_per_block) {
  const unsigned groups = blocks(n_levels, levels_per_block);
  const int64_t most = kMaxBlocks / groups > 0 ? kMaxBlocks / groups : 1;
  const int64_t tiles = blocks(n, samples);
  return dim3(unsigned(tiles < most ? tiles : most), groups);
}

void forward(const Tensor& like, const Arguments& a, Tensor& out) {
  const Launch launch(like);
  if (a.n == 0 || a.n_levels == 0) return;
  const Tensor rows = aligned(a.rows);
  for_dims_and_features(a, [&](auto d, auto f) {
    for_type(rows, [&](auto type) {
      using T = decltype(type);
      forward_kernel<d(), f(), T><<<grid(a.n, kPairs, a.n_levels, kLevels<f()>), kThreads, 0, launch.stream>>>(
          data<float>(a.positions), static_cast<const T*>(rows.data_ptr()), data<int32_t>(a.levels), a.n, a.n_rows,
          int(a.n_levels), out.scalar_type(), out.data_ptr());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
}

// a.positions and grad are aligned, as the kernels need them.
void write_positions(const Launch& launch, const Arguments& a, const Tensor& grad, float* grad_positions) {
  const Tensor rows = aligned(a.rows);
  for_dims_and_features(a, [&](auto d, auto f) {
    for_type(rows, [&](auto type) {
      using T = decltype(type);
      backward_positions_kernel<d(), f(), T><<<blocks(a.n), kThreads, 0, launch.stream>>>(
          grad.data_ptr(), grad.scalar_type(), data<float>(a.positions), static_cast<const T*>(rows.data_ptr()),
          data<int32_t>(a.levels), a.n, a.n_rows, int(a.n_levels), grad_positions);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
}

template <typename Sums>
void add_to_table(const Launch& launch, const Arguments& a, const Tensor& grad, Sums sums) {
  for_dims_and_features(a, [&](auto d, auto f) {
    const auto run = [&](auto type) {
      using G = decltype(type);
      const dim3 blocks = grid(a.n, kPairs / kLevels<f()> * kRun, a.n_levels, kLevels<f()>);
      backward_table_kernel<d(), f(), G><<<blocks, kThreads, 0, launch.stream>>>(
          static_cast<const G*>(grad.data_ptr()), data<float>(a.positions), data<int32_t>(a.levels), a.n, a.n_rows,
          int(a.n_levels), sums);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    };
    if constexpr (std::is_same_v<Sums, FixedSums>) {
      run(float());
    } else {
      for_type(grad, run);
    }
  });
}

// The same bits in every run, at the price of a pass for the scale, 8 bytes per value and one more pass over the table.
void add_to_table_fixed(const Launch& launch, const Arguments& a, const Tensor& grad_any, float* grad_table) {
  const Tensor grad = to_dtype(grad_any, ScalarType::Float);
  const int64_t size = a.n_rows * a.features, grad_size = a.n * a.n_levels * a.features;
  Tensor sums = torch::stable::new_zeros(a.rows, {a.n_rows, a.features}, ScalarType::Long);
  Tensor largest = torch::stable::new_zeros(a.rows, {1}, ScalarType::Int);
  uint32_t* bits = reinterpret_cast<uint32_t*>(mutable_data<int32_t>(largest));
  largest_kernel<<<grid(grad_size, kThreads, 1, 1), kThreads, 0, launch.stream>>>(data<float>(grad), grad_size, bits);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  auto* rows = reinterpret_cast<unsigned long long*>(mutable_data<int64_t>(sums));
  add_to_table(launch, a, grad, FixedSums{rows, bits, a.n, 0.0});
  fixed_to_float_kernel<<<blocks(size), kThreads, 0, launch.stream>>>(
      reinterpret_cast<const long long*>(rows), bits, a.n, size, grad_table);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void backward(const Tensor& like, const Arguments& given, const Tensor& grad_any, const Gradients& out) {
  const Launch launch(like);
  if (given.n == 0) return;
  if (given.n_levels == 0) {
    if (out.positions)
      STD_CUDA_CHECK(cudaMemsetAsync(out.positions, 0, given.n * given.dims * sizeof(float), launch.stream));
    return;
  }
  const Tensor grad = aligned(grad_any), positions = aligned(given.positions);
  const Arguments a{positions, given.rows, given.levels, given.n, given.dims, given.n_rows, given.features, given.n_levels};
  if (out.positions) write_positions(launch, a, grad, out.positions);
  if (!out.table) return;
  if (out.deterministic) add_to_table_fixed(launch, a, grad, out.table);
  else add_to_table(launch, a, grad, FloatSums{out.table});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("hash_grid", TORCH_BOX(&hash_grid<forward>));
  m.impl("hash_grid_backward", TORCH_BOX(&hash_grid_backward<backward>));
}

}  // namespace lightning_nerf::hash_grid
