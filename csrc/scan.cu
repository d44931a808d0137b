// Segments by their bounds: a group of kLanes neighboring lanes owns a segment and takes it kPer * kLanes entries at a
// time. The groups of a warp walk the same number of passes, so that every shuffle has the whole warp; a lane past its
// segment's end holds the identity.
// Segments by keys: a warp owns the runs that begin among its 32 entries, and follows the last of them to its end. Nothing
// has to be counted first, so nothing is synchronized.
#include "cuda.cuh"
#include "scan.h"

namespace lightning_nerf::scan {
namespace {

constexpr int kBlock = 128;

__device__ __forceinline__ float from_lane(float value, int lane, int width) {
  return __shfl_sync(kFullWarp, value, lane, width);
}
__device__ __forceinline__ float from_below(float value, int step, int width) {
  return __shfl_up_sync(kFullWarp, value, step, width);
}
__device__ __forceinline__ Affine<float> from_lane(Affine<float> map, int lane, int width) {
  return {from_lane(map.factor, lane, width), from_lane(map.summand, lane, width)};
}
__device__ __forceinline__ Affine<float> from_below(Affine<float> map, int step, int width) {
  return {from_below(map.factor, step, width), from_below(map.summand, step, width)};
}

// Inclusive scan over the lanes from `first` of a group to this one.
template <typename S, int kLanes>
__device__ __forceinline__ typename S::State scan_lanes(typename S::State state, int lane, int first = 0) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const typename S::State below = from_below(state, step, kLanes);
    if (lane - step >= first) state = S::combine(below, state);
  }
  return state;
}

// Entries [from, to), by all threads of the grid.
__device__ __forceinline__ void zero(float* data, int64_t from, int64_t to) {
  const int64_t stride = gridDim.x * int64_t(kBlock);
  for (int64_t i = from + blockIdx.x * int64_t(kBlock) + threadIdx.x; i < to; i += stride) data[i] = 0.0f;
}

template <typename S, int kLanes, int kPer>
__global__ void __launch_bounds__(kBlock) bounds_kernel(const S scan, const Segments s, const bool reverse) {
  using State = typename S::State;
  const int64_t segment = (blockIdx.x * int64_t(kBlock) + threadIdx.x) / kLanes;
  const int lane = threadIdx.x % kLanes;
  const bool exists = segment < s.n_segments;
  const int64_t begin = exists ? s.begin(segment) : 0, end = exists ? s.end(segment) : 0;
  const int64_t count = end > begin ? end - begin : 0;
  const int64_t step = reverse ? -1 : 1, first = reverse ? end - 1 : begin;
  const unsigned n_passes = __reduce_max_sync(kFullWarp, unsigned((count + kLanes * kPer - 1) / (kLanes * kPer)));

  State carried = S::identity();
  for (unsigned pass = 0; pass < n_passes; ++pass) {
    const int64_t from = int64_t(pass) * (kLanes * kPer) + lane;
    State state[kPer];
#pragma unroll
    for (int q = 0; q < kPer; ++q) {  // all loads in flight together
      const int64_t k = from + q * kLanes, i = first + k * step;
      state[q] = k < count ? scan.load(i, k == 0 ? kNone : i - step) : S::identity();
    }
#pragma unroll
    for (int q = 0; q < kPer; ++q) state[q] = scan_lanes<S, kLanes>(state[q], lane);
#pragma unroll
    for (int q = 0; q < kPer; ++q) {
      const int64_t k = from + q * kLanes, i = first + k * step;
      const State whole = from_lane(state[q], kLanes - 1, kLanes);
      if (k < count) scan.store(i, k == count - 1 ? kNone : i + step, S::combine(carried, state[q]));
      carried = S::combine(carried, whole);
    }
  }
  if (s.layout == Layout::kOffsets) {
    zero(scan.out, 0, s.begin(0));
    zero(scan.out, s.begin(s.n_segments), s.n);
  }
}

template <typename S>
__global__ void __launch_bounds__(kBlock) keys_kernel(const S scan, const Segments s, const bool reverse) {
  using State = typename S::State;
  const int lane = threadIdx.x % 32;
  const int64_t step = reverse ? -1 : 1;
  int64_t position = blockIdx.x * int64_t(kBlock) + threadIdx.x;
  int64_t i = reverse ? s.n - 1 - position : position;
  const auto after = [&](int64_t key) { return position + 1 < s.n && s.keys[i + step] == key ? i + step : kNone; };

  const bool exists = position < s.n;
  const int64_t key = exists ? s.keys[i] : 0;
  const bool begins = exists && (position == 0 || s.keys[i - step] != key);
  const unsigned all_begin = __ballot_sync(kFullWarp, begins);
  if (!all_begin) return;  // the whole warp
  const unsigned begun = all_begin & (kFullWarp >> (31 - lane));
  State state = exists ? scan.load(i, begins ? kNone : i - step) : S::identity();
  state = scan_lanes<S, 32>(state, lane, begun ? 31 - __clz(begun) : 0);
  if (exists && begun) scan.store(i, after(key), state);

  // The last run may go on.
  if (!__shfl_sync(kFullWarp, int(exists), 31)) return;
  const int64_t run = __shfl_sync(kFullWarp, key, 31);
  State carried = from_lane(state, 31, 32);
  for (;;) {
    position += 32;
    i += 32 * step;
    const bool in_run = position < s.n && s.keys[i] == run;
    const unsigned others = ~__ballot_sync(kFullWarp, in_run);
    const int count = others ? __ffs(int(others)) - 1 : 32;
    state = lane < count ? scan.load(i, i - step) : S::identity();
    state = S::combine(carried, scan_lanes<S, 32>(state, lane));
    if (lane < count) scan.store(i, after(run), state);
    if (count < 32) return;
    carried = from_lane(state, 31, 32);
  }
}

struct Cuda {
  using Real = float;

  template <typename S, int kLanes, int kPer>
  static void bounds(const S& scan, const Segments& s, bool reverse, cudaStream_t stream) {
    const unsigned needed = blocks(s.n_segments * kLanes, kBlock);
    const unsigned grid = needed < 64 ? 64 : needed;  // at least a few blocks: they also clear the tail
    bounds_kernel<S, kLanes, kPer><<<grid, kBlock, 0, stream>>>(scan, s, reverse);
  }

  template <typename S>
  static void run(const Tensor& like, const S& scan, const Segments& s, bool reverse) {
    const Launch launch(like);
    if (s.n == 0) return;
    if (s.layout == Layout::kKeys) {
      keys_kernel<S><<<blocks(s.n, kBlock), kBlock, 0, launch.stream>>>(scan, s, reverse);
    } else {
      if (s.layout == Layout::kPackedInfo)  // the entries between segments, of which none knows its neighbor
        STD_CUDA_CHECK(cudaMemsetAsync(scan.out, 0, s.n * sizeof(float), launch.stream));
      // Few idle lanes in a segment of mean length, and not many passes.
      const int64_t mean = s.n / (s.n_segments > 0 ? s.n_segments : 1);
      if (mean <= 6) bounds<S, 4, 2>(scan, s, reverse, launch.stream);
      else if (mean <= 12) bounds<S, 8, 2>(scan, s, reverse, launch.stream);
      else if (mean <= 48) bounds<S, 16, 2>(scan, s, reverse, launch.stream);
      else bounds<S, 32, 4>(scan, s, reverse, launch.stream);
    }
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("scan", TORCH_BOX(&scan<Cuda>));
  m.impl("scan_product_backward", TORCH_BOX(&scan_product_backward<Cuda>));
}

}  // namespace lightning_nerf::scan
