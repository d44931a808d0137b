#include "ray_budget.h"

namespace lightning_nerf {
namespace {

void ray_budget_(Tensor n_rays, const Tensor& n_samples, const Tensor& n_counted, double target, int64_t max_rays) {
  const RayBudget b = ray_budget_arguments(n_rays, n_samples, n_counted, target, max_rays);
  *b.n_rays = ray_budget(*b.n_rays, *b.n_samples, *b.n_counted, b.target, b.max_rays);
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("ray_budget_(Tensor(a!) n_rays, Tensor n_samples, Tensor n_counted, float target, int max_rays) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("ray_budget_", TORCH_BOX(&lightning_nerf::ray_budget_));
}
