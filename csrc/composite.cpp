#include "composite.h"

#include <algorithm>

namespace lightning_nerf::composite {
namespace {

constexpr int64_t kGrain = 64;  // rays; some ten microseconds of work

Interval interval(const Samples& s, int64_t i) { return s.interval(s.t_starts[i], s.t_ends[i]); }

float at(const float* cotangent, int64_t i) { return cotangent ? cotangent[i] : 0.0f; }

void zero(float* data, int64_t from, int64_t to) {
  if (data && from < to) std::fill(data + from, data + to, 0.0f);
}

// kChannels: the number of channels where the compiler may know it, else 0. kAlphas: alphas_given.
template <int kChannels, bool kAlphas>
void composite_rays(const Samples& s, float early_stop_eps, const Composited& out) {
  const int n_channels = kChannels ? kChannels : s.n_channels;
  parallel_for_rays(s.n_rays, kGrain, [&](int64_t ray) {
    const int64_t end = s.begin(ray + 1);
    float sums[kMaxChannels] = {};
    float opacity = 0.0f, depth = 0.0f, transmittance = 1.0f;
    int64_t i = s.begin(ray);
    for (; i < end && transmittance >= early_stop_eps; ++i) {
      const Interval here = interval(s, i);
      const Absorption a = absorb(kAlphas, s.densities[i], here.delta);
      const float weight = transmittance * a.alpha;
      if (out.weights) out.weights[i] = weight;
      if (out.trans) out.trans[i] = transmittance;
      if (out.alphas) out.alphas[i] = a.alpha;
      transmittance *= a.transmitted;
      if (weight == 0.0f) continue;  // a void sample's channels may hold anything
      opacity += weight;
      depth += weight * here.middle;
      for (int c = 0; c < n_channels; ++c) sums[c] += weight * s.channels[i * n_channels + c];
    }
    opacity = std::min(opacity, 1.0f);
    if (s.background)
      for (int c = 0; c < 3; ++c) sums[c] += (1.0f - opacity) * s.behind(ray)[c];
    for (int c = 0; c < n_channels; ++c) out.channels[ray * n_channels + c] = sums[c];
    out.opacity[ray] = opacity;
    out.depth[ray] = depth;
    out.n_samples[ray] = int32_t(i - s.begin(ray));
    for (float* each : {out.weights, out.trans, out.alphas}) zero(each, i, end);
  });
}

void forward(const Tensor&, const Samples& s, float early_stop_eps, const Composited& out) {
  const auto run = s.alphas_given      ? composite_rays<0, true>
                   : s.n_channels == 3 ? composite_rays<3, false>
                                       : composite_rays<0, false>;
  run(s, early_stop_eps, out);
  for (float* each : {out.weights, out.trans, out.alphas}) zero(each, s.begin(s.n_rays), s.n);
}

template <int kChannels, bool kAlphas>
void composite_backward_rays(
    const Samples& s, const int32_t* n_samples, const Cotangents& cotangents, const Gradients& grad) {
  const int n_channels = kChannels ? kChannels : s.n_channels;
  parallel_for_rays(s.n_rays, kGrain, [&](int64_t ray) {
    const int64_t begin = s.begin(ray), end = s.begin(ray + 1);
    const int64_t stop = std::min(begin + n_samples[ray], end);
    // Down the ray: the transmittance in front of each sample, parked where its gradient will be.
    float transmittance = 1.0f;
    for (int64_t i = begin; i < stop; ++i) {
      grad.densities[i] = transmittance;
      transmittance *= absorb(kAlphas, s.densities[i], interval(s, i).delta).transmitted;
    }
    // And back.
    float of_opacity = at(cotangents.opacity, ray);
    const float of_depth = at(cotangents.depth, ray);
    float of_channels[kMaxChannels] = {};
    if (cotangents.channels)
      for (int c = 0; c < n_channels; ++c) of_channels[c] = cotangents.channels[ray * n_channels + c];
    if (s.background)
      for (int c = 0; c < 3; ++c) of_opacity -= of_channels[c] * s.behind(ray)[c];
    float lambda = 0.0f;
    for (int64_t i = stop - 1; i >= begin; --i) {
      const Interval here = interval(s, i);
      const Absorption a = absorb(kAlphas, s.densities[i], here.delta);
      const float before = grad.densities[i];
      float g = of_opacity + of_depth * here.middle + at(cotangents.weights, i);
      if (cotangents.channels)
        for (int c = 0; c < n_channels; ++c) g += of_channels[c] * s.channels[i * n_channels + c];
      const float u = at(cotangents.trans, i), v = at(cotangents.alphas, i);
      const Lit lit = light(kAlphas, s.densities[i], here.delta, a, before, g, u, v);
      grad.densities[i] = lit.gradient(lambda);
      lambda = lit.pass(lambda);
      if (grad.channels)
        for (int c = 0; c < n_channels; ++c) grad.channels[i * n_channels + c] = before * a.alpha * of_channels[c];
    }
    zero(grad.densities, stop, end);
    zero(grad.channels, stop * n_channels, end * n_channels);
  });
}

void backward(
    const Tensor&, const Samples& s, const int32_t* n_samples, const Cotangents& cotangents, const Gradients& grad) {
  const auto run = s.alphas_given      ? composite_backward_rays<0, true>
                   : s.n_channels == 3 ? composite_backward_rays<3, false>
                                       : composite_backward_rays<0, false>;
  run(s, n_samples, cotangents, grad);
  zero(grad.densities, s.begin(s.n_rays), s.n);
  zero(grad.channels, s.begin(s.n_rays) * s.n_channels, s.n * s.n_channels);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "composite(Tensor densities, Tensor channels, Tensor t_starts, Tensor t_ends, Tensor offsets, float early_stop_eps, "
      "bool alphas_given, bool deltas_given, bool return_weights, bool return_trans, bool return_alphas, "
      "Tensor? background) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "composite_backward(Tensor? grad_channels_out, Tensor? grad_opacity, Tensor? grad_depth, Tensor? grad_weights, "
      "Tensor? grad_trans, Tensor? grad_alphas, Tensor densities, Tensor channels, Tensor t_starts, Tensor t_ends, "
      "Tensor offsets, Tensor n_samples, Tensor? background, bool alphas_given, bool deltas_given, bool channels_wanted) "
      "-> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("composite", TORCH_BOX(&composite<forward>));
  m.impl("composite_backward", TORCH_BOX(&composite_backward<backward>));
}

}  // namespace lightning_nerf::composite
