// The arguments and outputs of sample_points as both launchers want them.
#pragma once
#include "stable.h"
#include "sample_points.cuh"

namespace lightning_nerf {

using SampledPoints = std::tuple<Tensor, Tensor, Tensor>;  // positions, directions, times: [0] where rays have none

inline std::tuple<SamplePoints, SampledPoints> sample_points_arguments(
    const Tensor& origins, const Tensor& directions, const std::optional<Tensor>& times, const Tensor& t_starts,
    const Tensor& t_ends, const Tensor& ray_indices, const std::optional<Tensor>& to_unit) {
  check_float(origins, "origins");
  check_float(directions, "directions");
  if (times.has_value()) check_float(*times, "times");
  check_float(t_starts, "t_starts");
  check_float(t_ends, "t_ends");
  check_int(ray_indices, "ray_indices");
  SamplePoints p;
  p.origins = data<float>(origins);
  p.directions = data<float>(directions);
  p.times = times.has_value() ? data<float>(*times) : nullptr;
  p.t_starts = data<float>(t_starts);
  p.t_ends = data<float>(t_ends);
  p.ray_indices = data<int32_t>(ray_indices);
  p.to_unit = nullptr;
  if (to_unit.has_value()) {
    check_float(*to_unit, "to_unit");
    STD_TORCH_CHECK(to_unit->numel() == 6, "to_unit must be [2, 3]");
    p.to_unit = data<float>(*to_unit);
  }
  p.n_rays = origins.size(0);
  p.n = t_starts.size(0);
  Tensor positions = empty(origins, {p.n, 3}, ScalarType::Float);
  Tensor sample_directions = empty(origins, {p.n, 3}, ScalarType::Float);
  Tensor sample_times = empty(origins, {times.has_value() ? p.n : 0}, ScalarType::Float);
  p.positions = mutable_data<float>(positions);
  p.sample_directions = mutable_data<float>(sample_directions);
  p.sample_times = times.has_value() ? mutable_data<float>(sample_times) : nullptr;
  return {p, {positions, sample_directions, sample_times}};
}

}  // namespace lightning_nerf
