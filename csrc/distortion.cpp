#include "distortion.h"

#include <algorithm>

namespace lightning_nerf::distortion {
namespace {

constexpr int64_t kGrain = 64;  // rays; some ten microseconds of work

Sums<double> ray_sums(const Samples& s, int64_t begin, int64_t end) {
  Sums<double> all = {0.0, 0.0};
  for (int64_t i = begin; i < end; ++i) {
    all.weight += s.weights[i];
    all.moment += double(s.weights[i]) * s.middle(i, s.t_starts[begin]);
  }
  return all;
}

void forward(const Tensor&, const Samples& s, float* losses) {
  parallel_for_rays(s.n_rays, kGrain, [&](int64_t ray) {
    const int64_t begin = s.begin(ray), end = s.begin(ray + 1);
    Sums<double> before = {0.0, 0.0};
    double loss = 0.0;
    for (int64_t i = begin; i < end; ++i) {
      const double weight = s.weights[i], middle = s.middle(i, s.t_starts[begin]);
      loss += weight * (2.0 * (middle * before.weight - before.moment) + weight * s.length(i) / 3.0);
      before.weight += weight;
      before.moment += weight * middle;
    }
    losses[ray] = float(loss);
  });
}

void backward(const Tensor&, const Samples& s, const float* grad_losses, float* grad) {
  parallel_for_rays(s.n_rays, kGrain, [&](int64_t ray) {
    const int64_t begin = s.begin(ray), end = s.begin(ray + 1);
    Sums<double> before = {0.0, 0.0}, behind = ray_sums(s, begin, end);
    for (int64_t i = begin; i < end; ++i) {
      const double weight = s.weights[i], middle = s.middle(i, s.t_starts[begin]);
      behind.weight -= weight;
      behind.moment -= weight * middle;
      grad[i] = grad_losses[ray] * slope<double>(s.weights[i], middle, s.length(i), before, behind);
      before.weight += weight;
      before.moment += weight * middle;
    }
  });
  std::fill(grad + s.begin(s.n_rays), grad + s.n, 0.0f);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("distortion(Tensor weights, Tensor t_starts, Tensor t_ends, Tensor offsets) -> Tensor");
  m.def(
      "distortion_backward(Tensor grad_losses, Tensor weights, Tensor t_starts, Tensor t_ends, Tensor offsets) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("distortion", TORCH_BOX(&distortion<forward>));
  m.impl("distortion_backward", TORCH_BOX(&distortion_backward<backward>));
}

}  // namespace lightning_nerf::distortion
