// Arguments and results of the distortion ops, the same for both launchers.
#pragma once
#include "distortion.cuh"
#include "stable.h"

namespace lightning_nerf::distortion {

inline Samples make_samples(const Tensor& weights, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets) {
  check_float(weights, "weights");
  check_float(t_starts, "t_starts");
  check_float(t_ends, "t_ends");
  check_int(offsets, "offsets");
  const int64_t n = weights.numel();
  STD_TORCH_CHECK(t_starts.numel() == n && t_ends.numel() == n, "weights, t_starts and t_ends must have the same length");
  STD_TORCH_CHECK(offsets.numel() >= 1, "offsets must be [R + 1]");
  return {data<float>(weights), data<float>(t_starts), data<float>(t_ends), data<int32_t>(offsets), n, offsets.numel() - 1};
}

// run fills every entry of losses [R]; `like` says on which device.
template <void (*run)(const Tensor& like, const Samples&, float* losses)>
Tensor distortion(const Tensor& weights, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets) {
  const Samples s = make_samples(weights, t_starts, t_ends, offsets);
  Tensor losses = empty(weights, {s.n_rays}, ScalarType::Float);
  run(weights, s, mutable_data<float>(losses));
  return losses;
}

// grad_losses [R]; run fills every entry of grad [N].
template <void (*run)(const Tensor& like, const Samples&, const float* grad_losses, float* grad)>
Tensor distortion_backward(
    const Tensor& grad_losses, const Tensor& weights, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets) {
  const Samples s = make_samples(weights, t_starts, t_ends, offsets);
  check_float(grad_losses, "grad_losses");
  STD_TORCH_CHECK(grad_losses.numel() == s.n_rays, "grad_losses must be [R]");
  Tensor grad = empty(weights, {s.n}, ScalarType::Float);
  run(weights, s, data<float>(grad_losses), mutable_data<float>(grad));
  return grad;
}

}  // namespace lightning_nerf::distortion
