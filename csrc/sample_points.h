// Arguments and results of the sample_points op, the same for both launchers.
#pragma once
#include "contract.h"
#include "sample_points.cuh"

namespace lightning_nerf::sample_points {

// run fills every entry of the results; `like` says on which device. Positions, directions, times: [0] where rays have none.
template <void (*run)(const Tensor& like, const Arguments&)>
std::tuple<Tensor, Tensor, Tensor> sample_points(
    const Tensor& origins, const Tensor& directions, const std::optional<Tensor>& times, const Tensor& t_starts,
    const Tensor& t_ends, const Tensor& ray_indices, const std::optional<Tensor>& to_unit, int64_t contraction) {
  check_float(origins, "origins");
  check_float(directions, "directions");
  if (times.has_value()) check_float(*times, "times");
  check_float(t_starts, "t_starts");
  check_float(t_ends, "t_ends");
  check_int(ray_indices, "ray_indices");
  Arguments a;
  a.origins = data<float>(origins);
  a.directions = data<float>(directions);
  a.times = times.has_value() ? data<float>(*times) : nullptr;
  a.t_starts = data<float>(t_starts);
  a.t_ends = data<float>(t_ends);
  a.ray_indices = data<int32_t>(ray_indices);
  a.to_unit = nullptr;
  if (to_unit.has_value()) {
    check_float(*to_unit, "to_unit");
    STD_TORCH_CHECK(to_unit->numel() == 6, "to_unit must be [2, 3]");
    a.to_unit = data<float>(*to_unit);
  }
  STD_TORCH_CHECK(contraction == kNoContraction || to_unit.has_value(), "contraction without to_unit");
  a.contraction = checked_contraction(contraction);
  a.n_rays = origins.size(0);
  a.n = t_starts.size(0);
  Tensor positions = empty(origins, {a.n, 3}, ScalarType::Float);
  Tensor sample_directions = empty(origins, {a.n, 3}, ScalarType::Float);
  Tensor sample_times = empty(origins, {times.has_value() ? a.n : 0}, ScalarType::Float);
  a.positions = mutable_data<float>(positions);
  a.sample_directions = mutable_data<float>(sample_directions);
  a.sample_times = times.has_value() ? mutable_data<float>(sample_times) : nullptr;
  run(origins, a);
  return {positions, sample_directions, sample_times};
}

}  // namespace lightning_nerf::sample_points
