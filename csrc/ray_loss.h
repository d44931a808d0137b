// The arguments of the ray_loss ops as both launchers want them.
#pragma once
#include "ray_loss.cuh"
#include "stable.h"

namespace lightning_nerf {

using RayLosses = std::tuple<Tensor, Tensor, Tensor>;  // loss [], mse [], n_rays [] int64

inline RayLoss ray_loss_arguments(
    const Tensor& rgb, const Tensor& target, const std::optional<Tensor>& alpha, const std::optional<Tensor>& background,
    const Tensor& kept, const std::optional<Tensor>& mask, double delta) {
  check_float(rgb, "rgb");
  check_float(target, "target");
  check(kept, ScalarType::Bool, "kept");
  RayLoss r = {};
  r.n_rays = kept.numel();
  STD_TORCH_CHECK(rgb.numel() == 3 * r.n_rays && target.numel() == 3 * r.n_rays, "rgb and target must be [R, 3], kept [R]");
  r.rgb = data<float>(rgb);
  r.target = data<float>(target);
  r.kept = data<bool>(kept);
  r.delta = float(delta);
  if (mask.has_value()) {
    check(*mask, ScalarType::Bool, "mask");
    STD_TORCH_CHECK(mask->numel() == r.n_rays, "mask must be [R]");
    r.mask = data<bool>(*mask);
  }
  if (alpha.has_value()) {
    STD_TORCH_CHECK(background.has_value(), "alpha needs a background");
    check_float(*alpha, "alpha");
    check_float(*background, "background");
    r.background_per_ray = background->dim() == 2;
    STD_TORCH_CHECK(alpha->numel() == r.n_rays && background->numel() == (r.background_per_ray ? 3 * r.n_rays : 3),
                    "alpha must be [R], background [3] or [R, 3]");
    r.alpha = data<float>(*alpha);
    r.background = data<float>(*background);
  }
  return r;
}

}  // namespace lightning_nerf
