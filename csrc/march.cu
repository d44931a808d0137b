#include "cuda.cuh"
#include "march.h"

namespace lightning_nerf {
namespace {

// Rays differ in length: small blocks balance better. Eight of them on a multiprocessor leave 64 registers to a thread and
// run 131,072 rays in one wave on an H200.
constexpr int kMarchThreads = 128;

__global__ void __launch_bounds__(kMarchThreads, 8) march_count_kernel(
    const MarchArguments m,
    int32_t* __restrict__ counts) {  // [R]
  const int64_t r = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (r >= m.n_rays) return;
  CountSamples samples;
  march(Grid(m), Ray(m, r), Lattice(m, r), samples);
  counts[r] = samples.result();
}

__global__ void __launch_bounds__(kMarchThreads, 8) march_write_kernel(
    const MarchArguments m,
    const int32_t* __restrict__ offsets,  // [R + 1]
    int64_t n,
    float* __restrict__ t_starts,  // [N]
    float* __restrict__ t_ends,  // [N]
    int32_t* __restrict__ ray_indices) {  // [N]
  const int64_t r = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  const int begin = r < m.n_rays ? offsets[r] : 0;
  const int end = r < m.n_rays ? int(min(int64_t(offsets[r + 1]), n)) : 0;
  if (begin < end) {
    const Lattice lattice(m, r);
    WriteSamples samples{lattice, begin, end, t_starts, t_ends};
    march(Grid(m), Ray(m, r), lattice, samples);
  }
  // The warp writes the indices of its rays together, each ray's in one sweep.
  const int lane = threadIdx.x & 31;
  for (int i = 0; i < 32; ++i) {
    const int stop = __shfl_sync(~0u, end, i);
    for (int j = __shfl_sync(~0u, begin, i) + lane; j < stop; j += 32) ray_indices[j] = int32_t(r - lane + i);
  }
  // All threads together clear the tail. There is one even for R = 0.
  for (int64_t i = offsets[m.n_rays] + r; i < n; i += int64_t(gridDim.x) * blockDim.x) {
    t_starts[i] = t_ends[i] = 0.0f;
    ray_indices[i] = 0;
  }
}

Tensor march_count(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
    const std::optional<Tensor>& jitter, const Tensor& occupancy, const Tensor& aabb, double step_size,
    double cone_angle) {
  const Launch launch(origins);
  const MarchArguments m =
      march_arguments(origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle);
  Tensor counts = empty(origins, {m.n_rays}, ScalarType::Int);
  if (m.n_rays == 0) return counts;
  march_count_kernel<<<blocks(m.n_rays, kMarchThreads), kMarchThreads, 0, launch.stream>>>(
      m, mutable_data<int32_t>(counts));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return counts;
}

std::tuple<Tensor, Tensor, Tensor> march_write(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
    const std::optional<Tensor>& jitter, const Tensor& occupancy, const Tensor& aabb, double step_size,
    double cone_angle, const Tensor& offsets, int64_t n) {
  const Launch launch(origins);
  const MarchArguments m =
      march_arguments(origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle);
  check_int(offsets, "offsets");
  Tensor t_starts = empty(origins, {n}, ScalarType::Float);
  Tensor t_ends = empty(origins, {n}, ScalarType::Float);
  Tensor ray_indices = empty(origins, {n}, ScalarType::Int);
  if (n == 0) return {t_starts, t_ends, ray_indices};
  const unsigned int grid = m.n_rays > 0 ? blocks(m.n_rays, kMarchThreads) : 1;
  march_write_kernel<<<grid, kMarchThreads, 0, launch.stream>>>(
      m, data<int32_t>(offsets), n, mutable_data<float>(t_starts), mutable_data<float>(t_ends),
      mutable_data<int32_t>(ray_indices));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {t_starts, t_ends, ray_indices};
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("march_count", TORCH_BOX(&lightning_nerf::march_count));
  m.impl("march_write", TORCH_BOX(&lightning_nerf::march_write));
}
