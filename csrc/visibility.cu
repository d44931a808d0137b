#include "cuda.cuh"
#include "pack.h"
#include "visibility.h"

namespace lightning_nerf {
namespace {

constexpr int kLanes = 16;  // lanes of one ray: coalesced reads, few idle for the usual tens of samples

struct Samples {
  const float* densities;  // [N]
  const float* t_starts;  // [N]
  const float* t_ends;  // [N]
  const int32_t* offsets;  // [R + 1]
  const float* alpha_thre;  // []
  int64_t n_rays;
  double log_eps;
};

// Called by the lanes of ray r together. They look at kLanes consecutive samples at a time and call keep(i, rank) for each
// visible sample i, the rank-th of its ray. Returns how many there are.
template <typename Keep>
__device__ int scan_ray(const Samples& s, int64_t r, const Keep& keep) {
  const int lane = threadIdx.x & (kLanes - 1), shift = threadIdx.x & (31 & ~(kLanes - 1));
  const unsigned int mask = ((1u << kLanes) - 1u) << shift;
  const VisibilityLimits limits = visibility_limits(s.log_eps, *s.alpha_thre);
  const int64_t end = s.offsets[r + 1];
  double before = 0.0;  // optical depth in front of this chunk
  int kept = 0;
  for (int64_t chunk = s.offsets[r]; chunk < end && before <= limits.before; chunk += kLanes) {
    const int64_t i = chunk + lane;
    const double within = i < end ? optical_depth(s.densities[i], s.t_starts[i], s.t_ends[i]) : 0.0;
    double sum = within;
    for (int step = 1; step < kLanes; step *= 2) {
      const double left = __shfl_up_sync(mask, sum, step, kLanes);
      if (lane >= step) sum += left;
    }
    double in_front = __shfl_up_sync(mask, sum, 1, kLanes);  // not sum - within: that is NaN at inf
    in_front = before + (lane == 0 ? 0.0 : in_front);
    const bool keeps = i < end && visible(limits, in_front, within);
    const unsigned int keepers = (__ballot_sync(mask, keeps) & mask) >> shift;
    if (keeps) keep(i, kept + __popc(keepers & ((1u << lane) - 1u)));
    kept += __popc(keepers);
    before += __shfl_sync(mask, sum, kLanes - 1, kLanes);
  }
  return kept;
}

struct KeepNothing {
  __device__ void operator()(int64_t, int) const {}
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
  __device__ void operator()(int64_t i, int rank) const {
    const int64_t out = begin + rank;
    if (out >= end) return;
    kept.t_starts[out] = samples.t_starts[i];
    kept.t_ends[out] = samples.t_ends[i];
    kept.ray_indices[out] = int32_t(ray);
    kept.sources[out] = int32_t(i);
  }
};

__global__ void visibility_count_kernel(
    const Samples samples,
    int32_t* __restrict__ counts) {  // [R]
  const int64_t r = (blockIdx.x * int64_t(blockDim.x) + threadIdx.x) / kLanes;
  if (r >= samples.n_rays) return;
  const int kept = scan_ray(samples, r, KeepNothing());
  if (threadIdx.x % kLanes == 0) counts[r] = kept;
}

__global__ void visibility_write_kernel(
    const Samples samples,
    const int32_t* __restrict__ new_offsets,  // [R + 1]
    int64_t n, const Kept kept) {
  const int64_t thread = blockIdx.x * int64_t(blockDim.x) + threadIdx.x, r = thread / kLanes;
  if (r < samples.n_rays) {
    const int64_t begin = new_offsets[r], end = min(int64_t(new_offsets[r + 1]), n);
    if (begin < end) {
      const KeepSample keep = {samples, kept, r, begin, end};
      if (visibility_limits(samples.log_eps, *samples.alpha_thre).within <= 0.0) {
        // No sample is too thin: the visible ones are the first of their ray, and how many they are is known.
        const int64_t first = samples.offsets[r];
        for (int i = threadIdx.x & (kLanes - 1); i < end - begin; i += kLanes) keep(first + i, i);
      } else {
        scan_ray(samples, r, keep);
      }
    }
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
