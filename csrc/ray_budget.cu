#include "cuda.cuh"
#include "ray_budget.h"

namespace lightning_nerf::ray_budget {
namespace {

__global__ void update_kernel(const Arguments a) {
  *a.n_rays = next_rays(*a.n_rays, *a.n_samples, *a.n_counted, a.target, a.max_rays);
}

void update(const Tensor& like, const Arguments& a) {
  const Launch launch(like);
  update_kernel<<<1, 1, 0, launch.stream>>>(a);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) { m.impl("ray_budget_", TORCH_BOX(&ray_budget_<update>)); }

}  // namespace lightning_nerf::ray_budget
