// Arguments and results of the ray_loss ops, the same for both launchers.
#pragma once
#include "ray_loss.cuh"
#include "stable.h"

namespace lightning_nerf::ray_loss {

inline Arguments make_arguments(
    const Tensor& rgb, const Tensor& target, const std::optional<Tensor>& alpha, const std::optional<Tensor>& background,
    const Tensor& kept, const std::optional<Tensor>& mask, double delta) {
  check_float(rgb, "rgb");
  check_float(target, "target");
  check(kept, ScalarType::Bool, "kept");
  Arguments a = {};
  a.n_rays = kept.numel();
  STD_TORCH_CHECK(rgb.numel() == 3 * a.n_rays && target.numel() == 3 * a.n_rays, "rgb and target must be [R, 3], kept [R]");
  a.rgb = data<float>(rgb);
  a.target = data<float>(target);
  a.kept = data<bool>(kept);
  a.delta = float(delta);
  if (mask.has_value()) {
    check(*mask, ScalarType::Bool, "mask");
    STD_TORCH_CHECK(mask->numel() == a.n_rays, "mask must be [R]");
    a.mask = data<bool>(*mask);
  }
  if (alpha.has_value()) {
    STD_TORCH_CHECK(background.has_value(), "alpha needs a background");
    check_float(*alpha, "alpha");
    check_float(*background, "background");
    a.background_per_ray = background->dim() == 2;
    STD_TORCH_CHECK(
        alpha->numel() == a.n_rays && background->numel() == (a.background_per_ray ? 3 * a.n_rays : 3),
        "alpha must be [R], background [3] or [R, 3]");
    a.alpha = data<float>(*alpha);
    a.background = data<float>(*background);
  }
  return a;
}

struct Losses {
  float* loss;      // []
  float* mse;       // []
  int64_t* n_rays;  // [] those that count
};

// run fills every entry of what it is given; `like` says on which device.
template <void (*run)(const Tensor& like, const Arguments&, const Losses&)>
std::tuple<Tensor, Tensor, Tensor> ray_loss(
    const Tensor& rgb, const Tensor& target, const std::optional<Tensor>& alpha, const std::optional<Tensor>& background,
    const Tensor& kept, const std::optional<Tensor>& mask, double delta) {
  const Arguments a = make_arguments(rgb, target, alpha, background, kept, mask, delta);
  Tensor loss = empty(rgb, {}, ScalarType::Float), mse = empty(rgb, {}, ScalarType::Float);
  Tensor n_rays = empty(rgb, {}, ScalarType::Long);
  run(rgb, a, {mutable_data<float>(loss), mutable_data<float>(mse), mutable_data<int64_t>(n_rays)});
  return {loss, mse, n_rays};
}

// grad_loss [], n_rays [] as ray_loss gave it, grad [R, 3].
template <void (*run)(const Tensor& like, const Arguments&, const float* grad_loss, const int64_t* n_rays, float* grad)>
Tensor ray_loss_backward(
    const Tensor& grad_loss, const Tensor& rgb, const Tensor& target, const std::optional<Tensor>& alpha,
    const std::optional<Tensor>& background, const Tensor& kept, const std::optional<Tensor>& mask, const Tensor& n_rays,
    double delta) {
  const Arguments a = make_arguments(rgb, target, alpha, background, kept, mask, delta);
  check_float(grad_loss, "grad_loss");
  check(n_rays, ScalarType::Long, "n_rays");
  Tensor grad = empty(rgb, {a.n_rays, 3}, ScalarType::Float);
  run(rgb, a, data<float>(grad_loss), data<int64_t>(n_rays), mutable_data<float>(grad));
  return grad;
}

}  // namespace lightning_nerf::ray_loss
