// The arguments of the march ops as both launchers want them.
#pragma once
#include "stable.h"
#include "march.cuh"

namespace lightning_nerf {

inline MarchArguments march_arguments(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
    const std::optional<Tensor>& jitter, const Tensor& occupancy, const Tensor& aabb, double step_size,
    double cone_angle) {
  check_float(origins, "origins");
  check_float(directions, "directions");
  check_float(near, "near");
  check_float(far, "far");
  if (jitter.has_value()) check_float(*jitter, "jitter");
  check(occupancy, ScalarType::Bool, "occupancy");
  check_float(aabb, "aabb");
  STD_TORCH_CHECK(occupancy.dim() == 4 && occupancy.numel() > 0, "occupancy must be [L, X, Y, Z], none of them 0");
  MarchArguments m;
  m.origins = data<float>(origins);
  m.directions = data<float>(directions);
  m.near = data<float>(near);
  m.far = data<float>(far);
  m.jitter = jitter.has_value() ? data<float>(*jitter) : nullptr;
  m.occupancy = data<bool>(occupancy);
  m.aabb = data<float>(aabb);
  m.n_rays = origins.size(0);
  m.levels = int(occupancy.size(0));
  for (int a = 0; a < 3; ++a) m.resolution[a] = int(occupancy.size(1 + a));
  m.step_size = step_size;
  m.cone_angle = cone_angle;
  m.log_growth = std::log1p(cone_angle);
  return m;
}

}  // namespace lightning_nerf
