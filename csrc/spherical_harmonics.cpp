#include "spherical_harmonics.h"

namespace lightning_nerf::spherical_harmonics {
namespace {

constexpr int64_t kGrain = 2048;  // directions

void forward(const Tensor&, const Arguments& a, float* out) {
  for_degree(a.degree, [&](auto d) {
    parallel_for(a.n, kGrain, [&](int64_t i) { row<d()>(a.directions + 3 * i, out + i * d() * d()); });
  });
}

void backward(const Tensor&, const Arguments& a, const float* grad, float* grad_directions) {
  for_degree(a.degree, [&](auto d) {
    parallel_for(a.n, kGrain, [&](int64_t i) {
      row_backward<d()>(grad + i * d() * d(), a.directions + 3 * i, grad_directions + 3 * i);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("spherical_harmonics(Tensor directions, int degree) -> Tensor");
  m.def("spherical_harmonics_backward(Tensor grad, Tensor directions, int degree) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("spherical_harmonics", TORCH_BOX(&spherical_harmonics<forward>));
  m.impl("spherical_harmonics_backward", TORCH_BOX(&spherical_harmonics_backward<backward>));
}

}  // namespace lightning_nerf::spherical_harmonics
