#include "sample_points.h"

namespace lightning_nerf {
namespace {

SampledPoints sample_points(
    const Tensor& origins, const Tensor& directions, const std::optional<Tensor>& times, const Tensor& t_starts,
    const Tensor& t_ends, const Tensor& ray_indices, const std::optional<Tensor>& to_unit) {
  auto [p, outputs] = sample_points_arguments(origins, directions, times, t_starts, t_ends, ray_indices, to_unit);
  const SamplePoints& points = p;
  parallel_for(points.n, 4096, [&points](int64_t i) {
    for (int axis = 0; axis < 3; ++axis) sample_point(points, i, axis);
  });
  return outputs;
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "sample_points(Tensor origins, Tensor directions, Tensor? times, Tensor t_starts, Tensor t_ends, "
      "Tensor ray_indices, Tensor? to_unit) -> (Tensor positions, Tensor sample_directions, Tensor sample_times)");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("sample_points", TORCH_BOX(&lightning_nerf::sample_points));
}
