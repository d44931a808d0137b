#include "sample_points.h"

namespace lightning_nerf::sample_points {
namespace {

constexpr int64_t kGrain = 4096;  // samples

void sample_all(const Tensor&, const Arguments& a) {
  parallel_for(a.n, kGrain, [&](int64_t i) {
    for (int axis = 0; axis < 3; ++axis) sample_point(a, i, axis);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "sample_points(Tensor origins, Tensor directions, Tensor? times, Tensor t_starts, Tensor t_ends, "
      "Tensor ray_indices, Tensor? to_unit, int contraction=0) -> (Tensor positions, Tensor sample_directions, Tensor "
      "sample_times)");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) { m.impl("sample_points", TORCH_BOX(&sample_points<sample_all>)); }

}  // namespace lightning_nerf::sample_points
