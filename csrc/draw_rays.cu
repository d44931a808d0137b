#include "cuda.cuh"
#include "draw_rays.h"

namespace lightning_nerf::draw_rays {
namespace {

// A thread per ray: the time is that of one gather each of pixel, pose and color; the stores merge in the L2 cache.
template <bool has_lenses>
__global__ void draw_rays_kernel(Pixels pixels, Draw draw, Drawn drawn, int64_t capacity) {
  const int64_t ray = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (ray < capacity) draw_ray<has_lenses>(pixels, draw, drawn, ray);
}

void run_rays(const Tensor& like, const Pixels& pixels, const Draw& draw, const Drawn& drawn, int64_t capacity) {
  if (capacity == 0) return;
  const Launch launch(like);
  const auto kernel = pixels.model ? draw_rays_kernel<true> : draw_rays_kernel<false>;
  kernel<<<blocks(capacity, 128), 128, 0, launch.stream>>>(pixels, draw, drawn, capacity);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

__global__ void draw_background_kernel(Background b, int64_t n) {
  const int64_t ray = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (ray < n) draw_background_of(b, ray);
}

void run_background(const Tensor& like, const Background& background, int64_t n) {
  if (n == 0) return;
  const Launch launch(like);
  draw_background_kernel<<<blocks(n), kThreads, 0, launch.stream>>>(background, n);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace lightning_nerf::draw_rays

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  using namespace lightning_nerf::draw_rays;
  m.impl("draw_rays", TORCH_BOX(&draw_rays<run_rays>));
  m.impl("draw_background", TORCH_BOX(&draw_background<run_background>));
}
