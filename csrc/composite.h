// Arguments and results of the composite op, the same for both launchers.
#pragma once
#include "composite.cuh"
#include "stable.h"

namespace lightning_nerf::composite {

// Null for a missing tensor.
inline const float* optional_data(const std::optional<Tensor>& t, int64_t numel, const char* name) {
  if (!t.has_value()) return nullptr;
  check_float(*t, name);
  STD_TORCH_CHECK(t->numel() == numel, name, " has the wrong size");
  return data<float>(*t);
}

inline Samples make_samples(
    const Tensor& densities, const Tensor& channels, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets,
    const std::optional<Tensor>& background, bool alphas_given, bool deltas_given) {
  check_float(densities, "densities");
  check_float(channels, "channels");
  check_float(t_starts, "t_starts");
  check_float(t_ends, "t_ends");
  check_int(offsets, "offsets");
  const int64_t n = densities.size(0);
  STD_TORCH_CHECK(n < (int64_t(1) << 31) - 256, "composite takes less than 2^31 - 256 samples");
  STD_TORCH_CHECK(channels.dim() == 2 && channels.size(1) <= kMaxChannels, "composite takes at most 32 channels per call");
  STD_TORCH_CHECK(channels.size(0) == n && t_starts.size(0) == n && t_ends.size(0) == n, "sample counts differ");
  STD_TORCH_CHECK(offsets.size(0) > 0, "offsets must hold at least one entry");
  const int64_t n_rays = offsets.size(0) - 1;
  const bool per_ray = background.has_value() && background->dim() == 2;
  if (background.has_value()) {
    STD_TORCH_CHECK(channels.size(1) >= 3, "a background needs three channels or more");
    STD_TORCH_CHECK(background->size(per_ray ? 1 : 0) == 3, "background must be [3] or [R, 3]");
  }
  return {
      data<float>(densities),
      data<float>(channels),
      data<float>(t_starts),
      data<float>(t_ends),
      data<int32_t>(offsets),
      optional_data(background, per_ray ? 3 * n_rays : 3, "background"),
      n,
      n_rays,
      int(channels.size(1)),
      per_ray,
      alphas_given,
      deltas_given};
}

// run fills every entry of what it is given; `like` says on which device.
template <void (*run)(const Tensor& like, const Samples&, float early_stop_eps, const Composited&)>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> composite(
    const Tensor& densities, const Tensor& channels, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets,
    double early_stop_eps, bool alphas_given, bool deltas_given, bool return_weights, bool return_trans, bool return_alphas,
    const std::optional<Tensor>& background) {
  const Samples s = make_samples(densities, channels, t_starts, t_ends, offsets, background, alphas_given, deltas_given);
  Tensor channels_out = empty(densities, {s.n_rays, s.n_channels}, ScalarType::Float);
  Tensor opacity = empty(densities, {s.n_rays}, ScalarType::Float);
  Tensor depth = empty(densities, {s.n_rays}, ScalarType::Float);
  Tensor n_samples = empty(densities, {s.n_rays}, ScalarType::Int);
  Tensor weights = empty(densities, {return_weights ? s.n : 0}, ScalarType::Float);
  Tensor trans = empty(densities, {return_trans ? s.n : 0}, ScalarType::Float);
  Tensor alphas = empty(densities, {return_alphas ? s.n : 0}, ScalarType::Float);
  run(densities, s, float(early_stop_eps),
      {mutable_data<float>(channels_out), mutable_data<float>(opacity), mutable_data<float>(depth),
       mutable_data<int32_t>(n_samples), return_weights ? mutable_data<float>(weights) : nullptr,
       return_trans ? mutable_data<float>(trans) : nullptr, return_alphas ? mutable_data<float>(alphas) : nullptr});
  return {channels_out, opacity, depth, n_samples, weights, trans, alphas};
}

template <void (*run)(const Tensor& like, const Samples&, const int32_t* n_samples, const Cotangents&, const Gradients&)>
std::tuple<Tensor, Tensor> composite_backward(
    const std::optional<Tensor>& grad_channels_out, const std::optional<Tensor>& grad_opacity,
    const std::optional<Tensor>& grad_depth, const std::optional<Tensor>& grad_weights,
    const std::optional<Tensor>& grad_trans, const std::optional<Tensor>& grad_alphas, const Tensor& densities,
    const Tensor& channels, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets, const Tensor& n_samples,
    const std::optional<Tensor>& background, bool alphas_given, bool deltas_given, bool channels_wanted) {
  const Samples s = make_samples(densities, channels, t_starts, t_ends, offsets, background, alphas_given, deltas_given);
  check_int(n_samples, "n_samples");
  STD_TORCH_CHECK(n_samples.numel() == s.n_rays, "n_samples must be [R]");
  const Cotangents cotangents{
      optional_data(grad_channels_out, s.n_rays * s.n_channels, "grad_channels_out"),
      optional_data(grad_opacity, s.n_rays, "grad_opacity"),
      optional_data(grad_depth, s.n_rays, "grad_depth"),
      optional_data(grad_weights, s.n, "grad_weights"),
      optional_data(grad_trans, s.n, "grad_trans"),
      optional_data(grad_alphas, s.n, "grad_alphas")};
  Tensor grad_densities = empty(densities, {s.n}, ScalarType::Float);
  Tensor grad_channels = empty(densities, {channels_wanted ? s.n : 0, s.n_channels}, ScalarType::Float);
  run(densities, s, data<int32_t>(n_samples), cotangents,
      {mutable_data<float>(grad_densities), channels_wanted ? mutable_data<float>(grad_channels) : nullptr});
  return {grad_densities, grad_channels};
}

}  // namespace lightning_nerf::composite
