// Arguments and results of the frequency ops, the same for both launchers.
#pragma once
#include "frequency.cuh"
#include "stable.h"

namespace lightning_nerf::frequency {

struct Arguments {
  const float* x;  // [N, dims]
  int64_t n;
  Layout layout;
  const int* count;  // [1] or null
};

inline Arguments make_arguments(
    const Tensor& x, int64_t n_frequencies, bool include_input, double scale, const std::optional<Tensor>& count) {
  check_float(x, "x");
  STD_TORCH_CHECK(x.dim() == 2, "x: expected 2 dimensions, got ", x.dim());
  STD_TORCH_CHECK(
      n_frequencies >= 1 && n_frequencies <= kMaxFrequencies, "n_frequencies: expected 1 to ", kMaxFrequencies, ", got ",
      n_frequencies);
  STD_TORCH_CHECK(x.size(1) >= 1 && x.size(1) <= kMaxDims, "x: expected 1 to ", kMaxDims, " columns, got ", x.size(1));
  if (count.has_value()) {
    check_int(*count, "count");
    STD_TORCH_CHECK(count->numel() == 1, "count: expected one number, got ", count->numel());
  }
  const Layout layout{int(x.size(1)), int(n_frequencies), include_input, float(scale)};
  return {data<float>(x), x.size(0), layout, count.has_value() ? data<int>(*count) : nullptr};
}

// run fills out [N, width]; `like` says on which device.
template <void (*run)(const Tensor& like, const Arguments&, float* out)>
Tensor frequency(const Tensor& x, int64_t n_frequencies, bool include_input, double scale, std::optional<Tensor> count) {
  const Arguments a = make_arguments(x, n_frequencies, include_input, scale, count);
  Tensor out = empty(x, {a.n, a.layout.width()}, ScalarType::Float);
  run(x, a, mutable_data<float>(out));
  return out;
}

// run fills grad_x [N, dims] from grad [N, width].
template <void (*run)(const Tensor& like, const Arguments&, const float* grad, float* grad_x)>
Tensor frequency_backward(
    const Tensor& grad, const Tensor& x, int64_t n_frequencies, bool include_input, double scale,
    std::optional<Tensor> count) {
  const Arguments a = make_arguments(x, n_frequencies, include_input, scale, count);
  check_float(grad, "grad");
  STD_TORCH_CHECK(grad.numel() == a.n * a.layout.width(), "grad: expected one number for each of the encoding");
  Tensor grad_x = empty(x, {a.n, a.layout.dims}, ScalarType::Float);
  run(x, a, data<float>(grad), mutable_data<float>(grad_x));
  return grad_x;
}

}  // namespace lightning_nerf::frequency
