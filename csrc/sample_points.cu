#include "cuda.cuh"
#include "sample_points.h"

namespace lightning_nerf {
namespace {

// A thread per coordinate: neighbours store to neighbours, and the three reads of a sample's t come from one line.
__global__ void sample_points_kernel(SamplePoints p) {
  const int64_t element = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (element >= 3 * p.n) return;
  const int64_t i = element / 3;
  sample_point(p, i, int(element - 3 * i));
}

SampledPoints sample_points(
    const Tensor& origins, const Tensor& directions, const std::optional<Tensor>& times, const Tensor& t_starts,
    const Tensor& t_ends, const Tensor& ray_indices, const std::optional<Tensor>& to_unit) {
  const Launch launch(origins);
  auto [p, outputs] = sample_points_arguments(origins, directions, times, t_starts, t_ends, ray_indices, to_unit);
  if (p.n == 0) return outputs;
  sample_points_kernel<<<blocks(3 * p.n), kThreads, 0, launch.stream>>>(p);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return outputs;
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("sample_points", TORCH_BOX(&lightning_nerf::sample_points));
}
