#include "stable.h"
#include "ray_aabb.cuh"

namespace lightning_nerf {
namespace {

std::tuple<Tensor, Tensor, Tensor> ray_aabb(const Tensor& origins, const Tensor& directions, const Tensor& aabbs) {
  check_float(origins, "origins");
  check_float(directions, "directions");
  check_float(aabbs, "aabbs");
  const int64_t n_rays = origins.size(0), n_boxes = aabbs.size(0);
  Tensor t_mins = empty(origins, {n_rays, n_boxes}, ScalarType::Float);
  Tensor t_maxs = empty(origins, {n_rays, n_boxes}, ScalarType::Float);
  Tensor hits = empty(origins, {n_rays, n_boxes}, ScalarType::Bool);
  const float* o = data<float>(origins);
  const float* d = data<float>(directions);
  const float* boxes = data<float>(aabbs);
  float* t_min = mutable_data<float>(t_mins);
  float* t_max = mutable_data<float>(t_maxs);
  bool* hit = mutable_data<bool>(hits);
  parallel_for(n_rays * n_boxes, 4096, [&](int64_t i) {
    const int64_t ray = i / n_boxes;
    const Span span = ray_aabb_pair(o + 3 * ray, d + 3 * ray, boxes + 6 * (i % n_boxes));
    t_min[i] = span.t_min;
    t_max[i] = span.t_max;
    hit[i] = span.hit;
  });
  return {t_mins, t_maxs, hits};
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("ray_aabb(Tensor origins, Tensor directions, Tensor aabbs) -> (Tensor t_mins, Tensor t_maxs, Tensor hits)");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("ray_aabb", TORCH_BOX(&lightning_nerf::ray_aabb));
}
