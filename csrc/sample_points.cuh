// One coordinate of one packed sample's midpoint.
#pragma once
#include "contract.cuh"

namespace lightning_nerf::sample_points {

struct Arguments {
  const float* origins;        // [R, 3]
  const float* directions;     // [R, 3]
  const float* times;          // [R] or null
  const float* t_starts;       // [N]
  const float* t_ends;         // [N]
  const int32_t* ray_indices;  // [N]
  const float* to_unit;        // [2, 3] factor and summand of positions, or null
  int contraction;             // see contract.cuh; behind to_unit
  int64_t n_rays, n;

  float* positions;          // [N, 3]
  float* sample_directions;  // [N, 3]
  float* sample_times;       // [N] or null
};

// No ray, no place: without rays (a capacity's tail still names ray 0) all is 0, before to_unit.
LN_HD void sample_point(const Arguments& p, int64_t i, int axis) {
  const int64_t ray = p.ray_indices[i];
  const bool exists = ray >= 0 && ray < p.n_rays;
  const float middle = (p.t_starts[i] + p.t_ends[i]) * 0.5f;
  const float direction = exists ? p.directions[3 * ray + axis] : 0.0f;
  const auto along = [&](int a) {
    const float position = exists ? p.origins[3 * ray + a] + middle * p.directions[3 * ray + a] : 0.0f;
    return p.to_unit ? p.to_unit[3 + a] + position * p.to_unit[a] : position;
  };
  if (p.contraction == kNoContraction) {
    p.positions[3 * i + axis] = along(axis);
  } else {
    float x[3] = {along(0), along(1), along(2)};
    contract_unit(x, p.contraction);
    p.positions[3 * i + axis] = axis == 0 ? x[0] : axis == 1 ? x[1] : x[2];
  }
  p.sample_directions[3 * i + axis] = direction;
  if (axis == 0 && p.sample_times) p.sample_times[i] = exists ? p.times[ray] : 0.0f;
}

}  // namespace lightning_nerf::sample_points
