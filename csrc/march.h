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
  STD_TORCH_CHECK(occupancy.size(0) <= 8, "occupancy has more than 8 levels");
  for (int a = 1; a < 4; ++a)
    STD_TORCH_CHECK(occupancy.size(a) <= kMaxResolution, "occupancy has more than 2^18 cells on an axis");
  MarchArguments m;
  m.origins = data<float>(origins);
  m.directions = data<float>(directions);
  m.near = data<float>(near);
  m.far = data<float>(far);
  m.jitter = jitter.has_value() ? data<float>(*jitter) : nullptr;
  m.occupancy = reinterpret_cast<const uint8_t*>(data<bool>(occupancy));
  m.packing = 0;
  m.aabb = data<float>(aabb);
  m.n_rays = origins.size(0);
  m.levels = int(occupancy.size(0));
  for (int a = 0; a < 3; ++a) {
    m.resolution[a] = int(occupancy.size(1 + a));
    m.half_resolution[a] = 0.5f * float(m.resolution[a]);
    m.cell_size[a] = 1.0f / m.half_resolution[a];
  }
  m.step_size = step_size;
  m.cone_angle = cone_angle;
  m.log_growth = std::log1p(cone_angle);
  m.per_step = 1.0 / m.step_size;
  m.per_log_growth = 1.0 / m.log_growth;
  return m;
}

}  // namespace lightning_nerf
