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

__global__ void draw_background_kernel(Background b, int64_t n) {
  const int64_t ray = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (ray < n) draw_background_of(b, ray);
}

Tensor draw_background(const Tensor& key, int64_t n, int64_t random_steps, double red, double green, double blue) {
  const Launch launch(key);
  auto [b, out] = draw_background_arguments(key, n, random_steps, red, green, blue);
  if (n == 0) return out;
  draw_background_kernel<<<blocks(n), kThreads, 0, launch.stream>>>(b, n);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("draw_rays", TORCH_BOX(&lightning_nerf::draw_rays));
  m.impl("draw_background", TORCH_BOX(&lightning_nerf::draw_background));
}
