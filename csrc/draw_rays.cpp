#include "draw_rays.h"

namespace lightning_nerf {
namespace {

DrawnRays draw_rays(
    const Tensor& images, const Tensor& c2w, const Tensor& intrinsics, const std::optional<Tensor>& times,
    const std::optional<Tensor>& pixels, const Tensor& key, const std::optional<Tensor>& n_rays, int64_t capacity,
    double near, double far) {
  auto [d, outputs] =
      draw_rays_arguments(images, c2w, intrinsics, times, pixels, key, n_rays, capacity, near, far);
  const DrawRays& draw = d;
  parallel_for(capacity, 1024, [&draw](int64_t ray) { draw_ray(draw, ray); });
  return outputs;
}

Tensor draw_background(const Tensor& key, int64_t n, int64_t random_steps, double red, double green, double blue) {
  auto [b, out] = draw_background_arguments(key, n, random_steps, red, green, blue);
  const Background& background = b;
  parallel_for(n, 4096, [&background](int64_t ray) { draw_background_of(background, ray); });
  return out;
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "draw_rays(Tensor images, Tensor c2w, Tensor intrinsics, Tensor? times, Tensor? pixels, Tensor key, "
      "Tensor? n_rays, int capacity, float near, float far) "
      "-> (Tensor origins, Tensor directions, Tensor nears, Tensor fars, Tensor ray_times, Tensor rgb, Tensor alpha, "
      "Tensor mask, Tensor image_index)");
  m.def("draw_background(Tensor key, int n, int random_steps, float red, float green, float blue) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("draw_rays", TORCH_BOX(&lightning_nerf::draw_rays));
  m.impl("draw_background", TORCH_BOX(&lightning_nerf::draw_background));
}
