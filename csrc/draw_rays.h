// The arguments and outputs of draw_rays as both launchers want them.
#pragma once
#include "stable.h"
#include "draw_rays.cuh"

namespace lightning_nerf {

// origins, directions, nears, fars, times, rgb, alpha, mask, image_index; those that nobody wants are [0].
using DrawnRays = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline std::tuple<DrawRays, DrawnRays> draw_rays_arguments(
    const Tensor& images, const Tensor& c2w, const Tensor& intrinsics, const std::optional<Tensor>& times,
    const std::optional<Tensor>& pixels, const Tensor& key, const std::optional<Tensor>& n_rays, int64_t capacity,
    double near, double far) {
  check(images, ScalarType::Byte, "images");
  STD_TORCH_CHECK(images.dim() == 4 && (images.size(3) == 3 || images.size(3) == 4), "images must be [V, H, W, 3 or 4]");
  check_float(c2w, "c2w");
  check_float(intrinsics, "intrinsics");
  if (times.has_value()) check_float(*times, "times");
  if (pixels.has_value()) check(*pixels, ScalarType::Long, "pixels");
  check(key, ScalarType::Long, "key");
  if (n_rays.has_value()) check_int(*n_rays, "n_rays");

  DrawRays d;
  d.images = data<uint8_t>(images);
  d.c2w = data<float>(c2w);
  d.intrinsics = data<float>(intrinsics);
  d.times = times.has_value() ? data<float>(*times) : nullptr;
  d.pixels = pixels.has_value() ? data<int64_t>(*pixels) : nullptr;
  d.key = data<int64_t>(key);
  d.n_rays = n_rays.has_value() ? data<int32_t>(*n_rays) : nullptr;
  d.height = images.size(1);
  d.width = images.size(2);
  d.channels = images.size(3);
  d.size = pixels.has_value() ? pixels->size(0) : images.size(0) * d.height * d.width;
  d.near = float(near);
  d.far = float(far);
  STD_TORCH_CHECK(capacity == 0 || (d.size > 0 && images.numel() > 0), "there is no pixel to draw");

  const bool has_alpha = d.channels == 4;
  Tensor origins = empty(c2w, {capacity, 3}, ScalarType::Float);
  Tensor directions = empty(c2w, {capacity, 3}, ScalarType::Float);
  Tensor nears = empty(c2w, {capacity}, ScalarType::Float);
  Tensor fars = empty(c2w, {capacity}, ScalarType::Float);
  Tensor ray_times = empty(c2w, {d.times ? capacity : 0}, ScalarType::Float);
  Tensor rgb = empty(c2w, {capacity, 3}, ScalarType::Float);
  Tensor alpha = empty(c2w, {has_alpha ? capacity : 0}, ScalarType::Float);
  Tensor mask = empty(c2w, {d.n_rays ? capacity : 0}, ScalarType::Bool);
  Tensor image_index = empty(c2w, {capacity}, ScalarType::Long);
  d.origins = mutable_data<float>(origins);
  d.directions = mutable_data<float>(directions);
  d.nears = mutable_data<float>(nears);
  d.fars = mutable_data<float>(fars);
  d.ray_times = d.times ? mutable_data<float>(ray_times) : nullptr;
  d.rgb = mutable_data<float>(rgb);
  d.alpha = has_alpha ? mutable_data<float>(alpha) : nullptr;
  d.mask = d.n_rays ? mutable_data<bool>(mask) : nullptr;
  d.image_index = mutable_data<int64_t>(image_index);
  return {d, {origins, directions, nears, fars, ray_times, rgb, alpha, mask, image_index}};
}

inline std::tuple<Background, Tensor> draw_background_arguments(
    const Tensor& key, int64_t n, int64_t random_steps, double red, double green, double blue) {
  check(key, ScalarType::Long, "key");
  Tensor out = empty(key, {n, 3}, ScalarType::Float);
  return {{data<int64_t>(key), random_steps, {float(red), float(green), float(blue)}, mutable_data<float>(out)}, out};
}

}  // namespace lightning_nerf
