#include "spherical_harmonics.cuh"

#include <algorithm>

#include "stable.h"

namespace lightning_nerf {
namespace {

constexpr int64_t kGrain = 2048;

void check_arguments(const Tensor& directions, int64_t degree) {
  check_float(directions, "directions");
  STD_TORCH_CHECK(degree >= 1 && degree <= kMaxDegree, "degree: expected 1 to ", kMaxDegree, ", got ", degree);
}

Tensor spherical_harmonics(const Tensor& directions, int64_t degree) {
  check_arguments(directions, degree);
  const int64_t n = directions.size(0);
  Tensor out = empty(directions, {n, degree * degree}, ScalarType::Float);
  const float* in = data<float>(directions);
  float* rows = mutable_data<float>(out);
  for_degree(degree, [&](auto d) {
    parallel_for(n, kGrain, [&](int64_t i) { spherical_harmonics_row<d()>(in + 3 * i, rows + i * d() * d()); });
  });
  return out;
}

Tensor spherical_harmonics_backward(const Tensor& grad, const Tensor& directions, int64_t degree) {
  check_arguments(directions, degree);
  check_float(grad, "grad");
  const int64_t n = directions.size(0);
  Tensor out = empty(directions, {n, 3}, ScalarType::Float);
  const float *rows = data<float>(grad), *in = data<float>(directions);
  float* grad_directions = mutable_data<float>(out);
  for_degree(degree, [&](auto d) {
    parallel_for(n, kGrain, [&](int64_t i) {
      spherical_harmonics_row_backward<d()>(rows + i * d() * d(), in + 3 * i, grad_directions + 3 * i);
    });
  });
  return out;
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("spherical_harmonics(Tensor directions, int degree) -> Tensor");
  m.def("spherical_harmonics_backward(Tensor grad, Tensor directions, int degree) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("spherical_harmonics", TORCH_BOX(&lightning_nerf::spherical_harmonics));
  m.impl("spherical_harmonics_backward", TORCH_BOX(&lightning_nerf::spherical_harmonics_backward));
}
