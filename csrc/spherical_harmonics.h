// Arguments and results of the spherical_harmonics ops, the same for both launchers.
#pragma once
#include "spherical_harmonics.cuh"
#include "stable.h"

namespace lightning_nerf::spherical_harmonics {

struct Arguments {
  const float* directions;  // [N, 3]
  int64_t n, degree;
};

inline Arguments make_arguments(const Tensor& directions, int64_t degree) {
  check_float(directions, "directions");
  STD_TORCH_CHECK(degree >= 1 && degree <= kMaxDegree, "degree: expected 1 to ", kMaxDegree, ", got ", degree);
  return {data<float>(directions), directions.size(0), degree};
}

// run fills out [N, degree^2]; `like` says on which device.
template <void (*run)(const Tensor& like, const Arguments&, float* out)>
Tensor spherical_harmonics(const Tensor& directions, int64_t degree) {
  const Arguments a = make_arguments(directions, degree);
  Tensor out = empty(directions, {a.n, degree * degree}, ScalarType::Float);
  run(directions, a, mutable_data<float>(out));
  return out;
}

// run fills grad_directions [N, 3] from grad [N, degree^2].
template <void (*run)(const Tensor& like, const Arguments&, const float* grad, float* grad_directions)>
Tensor spherical_harmonics_backward(const Tensor& grad, const Tensor& directions, int64_t degree) {
  const Arguments a = make_arguments(directions, degree);
  check_float(grad, "grad");
  Tensor grad_directions = empty(directions, {a.n, 3}, ScalarType::Float);
  run(directions, a, data<float>(grad), mutable_data<float>(grad_directions));
  return grad_directions;
}

}  // namespace lightning_nerf::spherical_harmonics
