#include "ray_aabb.h"

namespace lightning_nerf::ray_aabb {
namespace {

constexpr int64_t kGrain = 4096;  // pairs

void intersect_all(const Tensor&, const Arguments& a) {
  parallel_for(a.n_rays * a.n_boxes, kGrain, [&](int64_t i) {
    const int64_t ray = i / a.n_boxes;
    const Span span = intersect(a.origins + 3 * ray, a.directions + 3 * ray, a.aabbs + 6 * (i % a.n_boxes));
    a.t_mins[i] = span.t_min;
    a.t_maxs[i] = span.t_max;
    a.hits[i] = span.hit;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("ray_aabb(Tensor origins, Tensor directions, Tensor aabbs) -> (Tensor t_mins, Tensor t_maxs, Tensor hits)");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) { m.impl("ray_aabb", TORCH_BOX(&ray_aabb<intersect_all>)); }

}  // namespace lightning_nerf::ray_aabb
