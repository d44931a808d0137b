#include "cuda.cuh"
#include "lens_rays.h"

namespace lightning_nerf::lens_rays {
namespace {

__global__ void lens_rays_kernel(Rays rays, Out out, int64_t n) {
  const int64_t ray = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (ray < n) lens_ray(rays, out, ray);
}

void run_rays(const Tensor& like, const Rays& rays, const Out& out, int64_t n) {
  if (n == 0) return;
  const Launch launch(like);
  lens_rays_kernel<<<blocks(n, 128), 128, 0, launch.stream>>>(rays, out, n);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace lightning_nerf::lens_rays

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  using namespace lightning_nerf::lens_rays;
  m.impl("lens_rays", TORCH_BOX(&lens_rays<run_rays>));
}
