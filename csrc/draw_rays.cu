#include "cuda.cuh"
#include "draw_rays.h"

namespace lightning_nerf {
namespace {

// A thread per ray: the time is that of one gather each of pixel, pose and colour; the stores merge in the L2 cache.
__global__ void draw_rays_kernel(DrawRays d, int64_t capacity) {
  const int64_t ray = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (ray < capacity) draw_ray(d, ray);
}

DrawnRays draw_rays(
    const Tensor& images, const Tensor& c2w, const Tensor& intrinsics, const std::optional<Tensor>& times,
    const std::optional<Tensor>& pixels, const Tensor& key, const std::optional<Tensor>& n_rays, int64_t capacity,
    double near, double far) {
  const Launch launch(images);
  auto [d, outputs] =
      draw_rays_arguments(images, c2w, intrinsics, times, pixels, key, n_rays, capacity, near, far);
  if (capacity == 0) return outputs;
  draw_rays_kernel<<<blocks(capacity, 128), 128, 0, launch.stream>>>(d, capacity);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return outputs;
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("draw_rays", TORCH_BOX(&lightning_nerf::draw_rays));
}
