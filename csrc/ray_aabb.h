// Arguments and results of the ray_aabb op, the same for both launchers.
#pragma once
#include "ray_aabb.cuh"
#include "stable.h"

namespace lightning_nerf::ray_aabb {

struct Arguments {
  const float* origins;     // [R, 3]
  const float* directions;  // [R, 3]
  const float* aabbs;       // [M, 2, 3]
  int64_t n_rays, n_boxes;

  float* t_mins;  // [R, M]
  float* t_maxs;  // [R, M]
  bool* hits;     // [R, M]
};

// run fills every entry of the results; `like` says on which device.
template <void (*run)(const Tensor& like, const Arguments&)>
std::tuple<Tensor, Tensor, Tensor> ray_aabb(const Tensor& origins, const Tensor& directions, const Tensor& aabbs) {
  check_float(origins, "origins");
  check_float(directions, "directions");
  check_float(aabbs, "aabbs");
  const int64_t n_rays = origins.size(0), n_boxes = aabbs.size(0);
  Tensor t_mins = empty(origins, {n_rays, n_boxes}, ScalarType::Float);
  Tensor t_maxs = empty(origins, {n_rays, n_boxes}, ScalarType::Float);
  Tensor hits = empty(origins, {n_rays, n_boxes}, ScalarType::Bool);
  run(origins, {data<float>(origins), data<float>(directions), data<float>(aabbs), n_rays, n_boxes,
                mutable_data<float>(t_mins), mutable_data<float>(t_maxs), mutable_data<bool>(hits)});
  return {t_mins, t_maxs, hits};
}

}  // namespace lightning_nerf::ray_aabb
