#include "frequency.h"

#include <algorithm>
#include <cmath>

namespace lightning_nerf::frequency {
namespace {

constexpr int64_t kGrain = 4096;  // sines and cosines

int64_t grain(const Layout& l) { return std::max<int64_t>(1, kGrain / l.width()); }

// Sine and cosine of 2^k * angle, k = 0, 1, ...: by the formulas for the double angle, far faster than the library's sine.
// Each doubles the error of a double, 2^-53; a new start in time keeps it far below the roundoff of a float.
class DoublingAngle {
 public:
  explicit DoublingAngle(float angle) : angle_(angle) { start(); }

  double sine() const { return sine_; }
  double cosine() const { return cosine_; }

  void next() {
    angle_ *= 2.0;
    if (++doublings_ == kLongest) return start();
    const double sine = 2.0 * sine_ * cosine_;
    cosine_ = (cosine_ - sine_) * (cosine_ + sine_);
    sine_ = sine;
  }

 private:
  static constexpr int kLongest = 16;  // errors stay below 2^-35

  void start() {
    sine_ = std::sin(angle_);
    cosine_ = std::cos(angle_);
    doublings_ = 0;
  }

  double angle_, sine_, cosine_;
  int doublings_;
};

void encode(const Layout& l, float x, int axis, float* row) {  // row [width]
  if (l.include_input) row[axis] = x;
  float* sines = row + l.sines() + axis;
  float* cosines = row + l.cosines() + axis;
  DoublingAngle angle(x * l.scale);
  for (int i = 0; i < l.pairs(); i += l.dims, angle.next()) {
    sines[i] = float(angle.sine());
    cosines[i] = float(angle.cosine());
  }
}

// d loss / dx of a coordinate, from grad = d loss / d row.
float encode_backward(const Layout& l, float x, int axis, const float* grad) {  // grad [width]
  const float* grad_sines = grad + l.sines() + axis;
  const float* grad_cosines = grad + l.cosines() + axis;
  DoublingAngle angle(x * l.scale);
  double sum = 0.0, power = 1.0;
  for (int i = 0; i < l.pairs(); i += l.dims, angle.next(), power *= 2.0)
    sum += power * (angle.cosine() * grad_sines[i] - angle.sine() * grad_cosines[i]);
  return float(l.scale * sum + (l.include_input ? grad[axis] : 0.0f));
}

void forward(const Tensor&, const Arguments& a, float* out) {
  const Layout& l = a.layout;
  const int64_t used = used_rows(a.n, a.count), width = l.width();
  parallel_for(used, grain(l), [&](int64_t i) {
    for (int axis = 0; axis < l.dims; ++axis) encode(l, a.x[i * l.dims + axis], axis, out + i * width);
  });
  std::fill(out + used * width, out + a.n * width, 0.0f);
}

void backward(const Tensor&, const Arguments& a, const float* grad, float* grad_x) {
  const Layout& l = a.layout;
  const int64_t used = used_rows(a.n, a.count), width = l.width();
  parallel_for(used, grain(l), [&](int64_t i) {
    for (int axis = 0; axis < l.dims; ++axis)
      grad_x[i * l.dims + axis] = encode_backward(l, a.x[i * l.dims + axis], axis, grad + i * width);
  });
  std::fill(grad_x + used * l.dims, grad_x + a.n * l.dims, 0.0f);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("frequency(Tensor x, int n_frequencies, bool include_input, float scale, Tensor? count) -> Tensor");
  m.def(
      "frequency_backward(Tensor grad, Tensor x, int n_frequencies, bool include_input, float scale, Tensor? count) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("frequency", TORCH_BOX(&frequency<forward>));
  m.impl("frequency_backward", TORCH_BOX(&frequency_backward<backward>));
}

}  // namespace lightning_nerf::frequency
