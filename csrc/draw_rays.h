// Arguments and results of the draw_rays ops, the same for both launchers.
#pragma once
#include "draw_rays.cuh"
#include "stable.h"

namespace lightning_nerf::draw_rays {

// run draws `capacity` rays; `like` says on which device. Results that no caller wants are [0].
template <void (*run)(const Tensor& like, const Pixels&, const Draw&, const Drawn&, int64_t capacity)>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> draw_rays(
    const Tensor& colors, const Tensor& offsets, const std::optional<Tensor>& drawable, const Tensor& c2w,
    const Tensor& intrinsics, const Tensor& size, const Tensor& bounds, const std::optional<Tensor>& times,
    const std::optional<Tensor>& lens_model, const std::optional<Tensor>& lens, const Tensor& key,
    const std::optional<Tensor>& n_rays, int64_t capacity) {
  check(colors, ScalarType::Byte, "colors");
  STD_TORCH_CHECK(colors.dim() == 2 && (colors.size(1) == 3 || colors.size(1) == 4), "colors must be [P, 3 or 4]");
  check(offsets, ScalarType::Long, "offsets");
  if (drawable.has_value()) check(*drawable, ScalarType::Long, "drawable");
  check_float(c2w, "c2w");
  check_float(intrinsics, "intrinsics");
  check(size, ScalarType::Long, "size");
  check_float(bounds, "bounds");
  if (times.has_value()) check_float(*times, "times");
  STD_TORCH_CHECK(lens_model.has_value() == lens.has_value(), "lens_model and lens must be given both or not at all");
  if (lens_model.has_value()) check(*lens_model, ScalarType::Long, "lens_model");
  if (lens.has_value()) check_float(*lens, "lens");
  check(key, ScalarType::Long, "key");
  if (n_rays.has_value()) check_int(*n_rays, "n_rays");
  const int64_t n_views = c2w.size(0), n_channels = colors.size(1);
  STD_TORCH_CHECK(offsets.numel() == n_views + 1, "offsets must be [V + 1]");
  STD_TORCH_CHECK(
      !lens.has_value() || (lens->numel() == 8 * n_views && lens_model->numel() == n_views),
      "lens_model and lens must be [V] and [V, 8]");
  const int64_t n_drawable = drawable.has_value() ? drawable->size(0) : colors.size(0);
  STD_TORCH_CHECK(capacity == 0 || (n_drawable > 0 && colors.numel() > 0 && n_views > 0), "there is no pixel to draw");

  const Pixels pixels{
      data<uint8_t>(colors),
      data<int64_t>(offsets),
      drawable.has_value() ? data<int64_t>(*drawable) : nullptr,
      data<float>(c2w),
      data<float>(intrinsics),
      data<int64_t>(size),
      data<float>(bounds),
      times.has_value() ? data<float>(*times) : nullptr,
      lens_model.has_value() ? data<int64_t>(*lens_model) : nullptr,
      lens.has_value() ? data<float>(*lens) : nullptr,
      n_views,
      n_channels,
      n_drawable};
  const Draw draw{data<int64_t>(key), n_rays.has_value() ? data<int32_t>(*n_rays) : nullptr};
  const bool has_alpha = n_channels == 4;
  Tensor origins = empty(c2w, {capacity, 3}, ScalarType::Float);
  Tensor directions = empty(c2w, {capacity, 3}, ScalarType::Float);
  Tensor near = empty(c2w, {capacity}, ScalarType::Float);
  Tensor far = empty(c2w, {capacity}, ScalarType::Float);
  Tensor ray_times = empty(c2w, {pixels.times ? capacity : 0}, ScalarType::Float);
  Tensor footprint = empty(c2w, {capacity}, ScalarType::Float);
  Tensor rgb = empty(c2w, {capacity, 3}, ScalarType::Float);
  Tensor alpha = empty(c2w, {has_alpha ? capacity : 0}, ScalarType::Float);
  Tensor mask = empty(c2w, {draw.n_rays ? capacity : 0}, ScalarType::Bool);
  Tensor camera = empty(c2w, {capacity}, ScalarType::Long);
  const Drawn drawn{
      mutable_data<float>(origins),
      mutable_data<float>(directions),
      mutable_data<float>(near),
      mutable_data<float>(far),
      pixels.times ? mutable_data<float>(ray_times) : nullptr,
      mutable_data<float>(footprint),
      mutable_data<float>(rgb),
      has_alpha ? mutable_data<float>(alpha) : nullptr,
      draw.n_rays ? mutable_data<bool>(mask) : nullptr,
      mutable_data<int64_t>(camera)};
  run(colors, pixels, draw, drawn, capacity);
  return {origins, directions, near, far, ray_times, footprint, rgb, alpha, mask, camera};
}

template <void (*run)(const Tensor& like, const Background&, int64_t n)>
Tensor draw_background(const Tensor& key, int64_t n, int64_t random_steps, double red, double green, double blue) {
  check(key, ScalarType::Long, "key");
  Tensor out = empty(key, {n, 3}, ScalarType::Float);
  run(key, {data<int64_t>(key), random_steps, {float(red), float(green), float(blue)}, mutable_data<float>(out)}, n);
  return out;
}

}  // namespace lightning_nerf::draw_rays
