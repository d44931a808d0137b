#include "lens_rays.h"

namespace lightning_nerf::lens_rays {
namespace {

void run_rays(const Tensor&, const Rays& rays, const Out& out, int64_t n) {
  parallel_for(n, 128, [&](int64_t ray) { lens_ray(rays, out, ray); });
}

}  // namespace
}  // namespace lightning_nerf::lens_rays

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "lens_rays(Tensor c2w, Tensor intrinsics, Tensor lens_model, Tensor lens, Tensor limit, Tensor x, Tensor y) "
      "-> (Tensor directions, Tensor footprint, Tensor valid)");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  using namespace lightning_nerf::lens_rays;
  m.impl("lens_rays", TORCH_BOX(&lens_rays<run_rays>));
}
