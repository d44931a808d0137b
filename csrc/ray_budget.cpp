#include "ray_budget.h"

namespace lightning_nerf::ray_budget {
namespace {

void update(const Tensor&, const Arguments& a) {
  *a.n_rays = next_rays(*a.n_rays, *a.n_samples, *a.n_counted, a.target, a.max_rays);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("ray_budget_(Tensor(a!) n_rays, Tensor n_samples, Tensor n_counted, float target, int max_rays) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) { m.impl("ray_budget_", TORCH_BOX(&ray_budget_<update>)); }

}  // namespace lightning_nerf::ray_budget
