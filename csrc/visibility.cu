#include "cuda.cuh"
#include "pack.h"
#include "visibility.h"

namespace lightning_nerf {
namespace {

constexpr int kLanes = 8, kEach = 2;  // lanes of one ray, samples of a lane: few idle for the usual tens of samples

struct Samples {
  const float* densities;  // [N]
  const float* t_starts;  // [N]
  const float* t_ends;  // [N]
  const int32_t* offsets;  // [R + 1]
  const float* alpha_thre;  // []
  int64_t n_rays;
  double log_eps;
};

// Called by a warp: the kLanes lanes of each ray look at kLanes * kEach of its samples from `begin` to `end` at a time and
// call keep(i, rank) for each visible sample i, the rank-th of its ray. Returns how many there are. A ray that
// ends waits for the warp's longest, because shuffles are several times slower in a warp that has parted.
template <typename Keep>
__device__ int scan_rays(const Samples& s, const VisibilityLimits& limits, int begin, int end, const Keep& keep) {
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
      keeps[j] = first + j < end && visible(limits, in_front, within[j]);
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

struct Kept {
  float* t_starts;  // [N']
  float* t_ends;  // [N']
  int32_t* ray_indices;  // [N']
  int32_t* sources;  // [N']
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

__global__ void visibility_count_kernel(
    const Samples samples,
    int32_t* __restrict__ counts) {  // [R]
  const int64_t r = (blockIdx.x * int64_t(blockDim.x) + threadIdx.x) / kLanes;
  const bool exists = r < samples.n_rays;
  const VisibilityLimits limits = visibility_limits(samples.log_eps, *samples.alpha_thre);
  const int begin = exists ? samples.offsets[r] : 0, end = exists ? samples.offsets[r + 1] : 0;
  const int kept = scan_rays(samples, limits, begin, end, KeepNothing());
  if (exists && threadIdx.x % kLanes == 0) counts[r] = kept;
}

__global__ void visibility_write_kernel(
    const Samples samples,
    const int32_t* __restrict__ new_offsets,  // [R + 1]
    int64_t n, const Kept kept) {
  const int64_t thread = blockIdx.x * int64_t(blockDim.x) + threadIdx.x, r = thread / kLanes;
  const bool exists = r < samples.n_rays;
  const int64_t out = exists ? new_offsets[r] : 0, out_end = exists ? min(int64_t(new_offsets[r + 1]), n) : 0;
  const int begin = out < out_end ? samples.offsets[r] : 0;
  const KeepSample keep = {samples, kept, r, out, out_end};
  const VisibilityLimits limits = visibility_limits(samples.log_eps, *samples.alpha_thre);
  if (limits.within <= 0.0) {  // no sample is too thin: the visible ones are the first of their ray, and known in number
    for (int i = threadIdx.x & (kLanes - 1); i < out_end - out; i += kLanes) keep(begin + i, i);
  } else {
    scan_rays(samples, limits, begin, out < out_end ? samples.offsets[r + 1] : 0, keep);
  }
  // All threads together clear the tail. There are some even for R = 0.
  for (int64_t i = new_offsets[samples.n_rays] + thread; i < n; i += int64_t(gridDim.x) * blockDim.x) {
    kept.t_starts[i] = kept.t_ends[i] = 0.0f;
    kept.ray_indices[i] = kept.sources[i] = 0;
  }
}

Samples make_samples(
    const Tensor& densities, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets, double early_stop_eps,
    const Tensor& alpha_thre) {
  check_visibility(densities, t_starts, t_ends, offsets, alpha_thre);
  return {data<float>(densities), data<float>(t_starts), data<float>(t_ends), data<int32_t>(offsets),
          data<float>(alpha_thre), offsets.size(0) - 1, std::log(early_stop_eps)};
}

Tensor visibility_count(
    const Tensor& densities, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets, double early_stop_eps,
    const Tensor& alpha_thre) {
  const Launch launch(densities);
  const Samples samples = make_samples(densities, t_starts, t_ends, offsets, early_stop_eps, alpha_thre);
  Tensor counts = empty(densities, {samples.n_rays}, ScalarType::Int);
  if (samples.n_rays == 0) return counts;
  visibility_count_kernel<<<blocks(samples.n_rays * kLanes), kThreads, 0, launch.stream>>>(
      samples, mutable_data<int32_t>(counts));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return counts;
}

Survivors visibility_write(
    const Tensor& densities, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets, double early_stop_eps,
    const Tensor& alpha_thre, const Tensor& new_offsets, int64_t n) {
  const Launch launch(densities);
  const Samples samples = make_samples(densities, t_starts, t_ends, offsets, early_stop_eps, alpha_thre);
  check_int(new_offsets, "new_offsets");
  Survivors survivors = empty_survivors(densities, n);
  if (n == 0) return survivors;
  auto& [new_starts, new_ends, ray_indices, sources] = survivors;
  const Kept kept = {mutable_data<float>(new_starts), mutable_data<float>(new_ends), mutable_data<int32_t>(ray_indices),
                     mutable_data<int32_t>(sources)};
  const unsigned int grid = samples.n_rays > 0 ? blocks(samples.n_rays * kLanes) : 1;
  visibility_write_kernel<<<grid, kThreads, 0, launch.stream>>>(samples, data<int32_t>(new_offsets), n, kept);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return survivors;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> visibility_pack(
    const Tensor& densities, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets, const Tensor& kept,
    double early_stop_eps, const Tensor& alpha_thre, int64_t capacity) {
  check(kept, ScalarType::Bool, "kept");
  const Tensor counts = visibility_count(densities, t_starts, t_ends, offsets, early_stop_eps, alpha_thre);
  const auto [new_offsets, new_kept] = pack_on_cuda(counts, kept, capacity);
  const auto [new_starts, new_ends, ray_indices, sources] = visibility_write(
      densities, t_starts, t_ends, offsets, early_stop_eps, alpha_thre, new_offsets, capacity);
  return {new_starts, new_ends, ray_indices, new_offsets, new_kept, sources};
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("visibility_count", TORCH_BOX(&lightning_nerf::visibility_count));
  m.impl("visibility_write", TORCH_BOX(&lightning_nerf::visibility_write));
  m.impl("visibility_pack", TORCH_BOX(&lightning_nerf::visibility_pack));
}
