#include "cuda.cuh"
#include "ray_budget.h"

namespace lightning_nerf {
namespace {

__global__ void ray_budget_kernel(const RayBudget b) {
  *b.n_rays = ray_budget(*b.n_rays, *b.n_samples, *b.n_counted, b.target, b.max_rays);
}

void ray_budget_(Tensor n_rays, const Tensor& n_samples, const Tensor& n_counted, double target, int64_t max_rays) {
  const Launch launch(n_rays);
  const RayBudget b = ray_budget_arguments(n_rays, n_samples, n_counted, target, max_rays);
  ray_budget_kernel<<<1, 1, 0, launch.stream>>>(b);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("ray_budget_", TORCH_BOX(&lightning_nerf::ray_budget_));
}
