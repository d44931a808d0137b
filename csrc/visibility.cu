#include "cuda.cuh"
#include "visibility.h"

namespace lightning_nerf::visibility {
namespace {

constexpr int kLanes = 8, kEach = 2;  // lanes of one ray, samples of a lane: few idle for the usual tens of samples

// Called by a warp: the kLanes lanes of each ray look at kLanes * kEach of its samples from `begin` to `end` at a time and
// call keep(i, rank) for each visible sample i, the rank-th of its ray. Returns how many there are. A ray that
// ends waits for the warp's longest, because shuffles are several times slower in a warp that has parted.
template <typename Keep>
__device__ int scan_rays(const Samples& s, const Limits& limits, int begin, int end, const Keep& keep) {
  const int chosen = int(min(int64_t(end), begin + s.first));  // from here on
  end = int(min(int64_t(end), begin + s.last));
  const int lane = threadIdx.x & (kLanes - 1), shift = threadIdx.x & (31 & ~(kLanes - 1));
  const unsigned int mask = ((1u << kLanes) - 1u) << shift, lower = ((1u << lane) - 1u) << shift;
  double before = 0.0;  // optical depth in front of this chunk
  int kept = 0;
  for (int chunk = begin; __any_sync(kFullWarp, chunk < end && before <= limits.before); chunk += kLanes * kEach) {
    const int first = chunk + kEach * lane;
    double within[kEach], sum = 0.0;
    for (int j = 0; j < kEach; ++j) {
      const int i = first + j;
      const bool reached = i < end && before <= limits.before;
      within[j] = reached ? optical_depth(s.densities[i], s.t_starts[i], s.t_ends[i]) : 0.0;
      sum += within[j];
    }
    for (int step = 1; step < kLanes; step *= 2) {
      const double left = __shfl_up_sync(kFullWarp, sum, step, kLanes);
      if (lane >= step) sum += left;
    }
    double in_front = __shfl_up_sync(kFullWarp, sum, 1, kLanes);  // not sum - within: that is NaN at inf
    in_front = before + (lane == 0 ? 0.0 : in_front);
    int rank = kept;
    bool keeps[kEach];
    for (int j = 0; j < kEach; ++j) {
      keeps[j] = first + j >= chosen && first + j < end && visible(limits, in_front, within[j]);
      in_front += within[j];
      const unsigned int keepers = __ballot_sync(kFullWarp, keeps[j]) & mask;
      rank += __popc(keepers & lower);
      kept += __popc(keepers);
    }
    for (int j = 0; j < kEach; ++j)
      if (keeps[j]) keep(first + j, rank++);
    before += __shfl_sync(kFullWarp, sum, kLanes - 1, kLanes);
  }
  return kept;
}

struct KeepNothing {
  __device__ void operator()(int, int) const {}
};

struct KeepSample {
  const Samples& samples;
  const Kept& kept;
  int64_t ray, begin, end;
  __device__ void operator()(int i, int rank) const {
    const int64_t out = begin + rank;
    if (out >= end) return;
    kept.t_starts[out] = samples.t_starts[i];
    kept.t_ends[out] = samples.t_ends[i];
    kept.ray_indices[out] = int32_t(ray);
    kept.sources[out] = i;
  }
};

__global__ void count_kernel(const Samples samples,
                             int32_t* __restrict__ counts) {  // [R]
  const int64_t r = (blockIdx.x * int64_t(blockDim.x) + threadIdx.x) / kLanes;
  const bool exists = r < samples.n_rays;
  const Limits limits = limits_of(samples.log_eps, *samples.alpha_thre);
  const int begin = exists ? samples.offsets[r] : 0, end = exists ? samples.offsets[r + 1] : 0;
  const int kept = scan_rays(samples, limits, begin, end, KeepNothing());
  if (exists && threadIdx.x % kLanes == 0) counts[r] = kept;
}

__global__ void write_kernel(
    const Samples samples,
    const int32_t* __restrict__ new_offsets,  // [R + 1]
    int64_t n, const Kept kept) {
  const int64_t thread = blockIdx.x * int64_t(blockDim.x) + threadIdx.x, r = thread / kLanes;
  const bool exists = r < samples.n_rays;
  const int64_t out = exists ? new_offsets[r] : 0, out_end = exists ? min(int64_t(new_offsets[r + 1]), n) : 0;
  const int begin = out < out_end ? samples.offsets[r] : 0;
  const KeepSample keep = {samples, kept, r, out, out_end};
  const Limits limits = limits_of(samples.log_eps, *samples.alpha_thre);
  if (limits.within <= 0.0) {  // no sample is too thin: the visible ones are the first in the window, and known in number
    for (int i = threadIdx.x & (kLanes - 1); i < out_end - out; i += kLanes) keep(begin + int(samples.first) + i, i);
  } else {
    scan_rays(samples, limits, begin, out < out_end ? samples.offsets[r + 1] : 0, keep);
  }
  // All threads together clear the tail. There are some even for R = 0.
  for (int64_t i = new_offsets[samples.n_rays] + thread; i < n; i += int64_t(gridDim.x) * blockDim.x) {
    kept.t_starts[i] = kept.t_ends[i] = 0.0f;
    kept.ray_indices[i] = kept.sources[i] = 0;
  }
}

void count(const Tensor& like, const Samples& s, int32_t* counts) {
  const Launch launch(like);
  if (s.n_rays == 0) return;
  count_kernel<<<blocks(s.n_rays * kLanes), kThreads, 0, launch.stream>>>(s, counts);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void write(const Tensor& like, const Samples& s, const int32_t* new_offsets, int64_t n, const Kept& out) {
  const Launch launch(like);
  if (n == 0) return;
  const unsigned int grid = s.n_rays > 0 ? blocks(s.n_rays * kLanes) : 1;
  write_kernel<<<grid, kThreads, 0, launch.stream>>>(s, new_offsets, n, out);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("visibility_count", TORCH_BOX(&visibility_count<count>));
  m.impl("visibility_write", TORCH_BOX(&visibility_write<write>));
  m.impl("visibility_pack", TORCH_BOX((&visibility_pack<count, pack::run_on_cuda, write>)));
}

}  // namespace lightning_nerf::visibility
