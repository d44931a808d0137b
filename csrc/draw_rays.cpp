#include "draw_rays.h"

namespace lightning_nerf::draw_rays {
namespace {

void run_rays(const Tensor&, const Pixels& pixels, const Draw& draw, const Drawn& drawn, int64_t capacity) {
  if (pixels.model) parallel_for_rays(capacity, 128, [&](int64_t ray) { draw_ray<true>(pixels, draw, drawn, ray); });
  else parallel_for_rays(capacity, 128, [&](int64_t ray) { draw_ray<false>(pixels, draw, drawn, ray); });
}

void run_background(const Tensor&, const Background& background, int64_t n) {
  parallel_for(n, 4096, [&](int64_t ray) { draw_background_of(background, ray); });
}

}  // namespace
}  // namespace lightning_nerf::draw_rays

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "draw_rays(Tensor colors, Tensor offsets, Tensor? drawable, Tensor c2w, Tensor intrinsics, Tensor size, Tensor "
      "bounds, "
      "Tensor? times, Tensor? lens_model, Tensor? lens, Tensor key, Tensor? n_rays, int capacity) "
      "-> (Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor ray_times, Tensor footprint, Tensor rgb, "
      "Tensor alpha, Tensor mask, Tensor camera)");
  m.def("draw_background(Tensor key, int n, int random_steps, float red, float green, float blue) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  using namespace lightning_nerf::draw_rays;
  m.impl("draw_rays", TORCH_BOX(&draw_rays<run_rays>));
  m.impl("draw_background", TORCH_BOX(&draw_background<run_background>));
}
