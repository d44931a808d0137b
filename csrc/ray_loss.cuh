// One ray's share of the loss, and the derivative. Sums belong to the launchers.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::ray_loss {

struct Arguments {
  const float* rgb;         // [R, 3] as rendered
  const float* target;      // [R, 3], straight alpha where there is alpha
  const float* alpha;       // [R] or null: all is opaque
  const float* background;  // [3] or [R, 3]; null where alpha is
  const bool* kept;         // [R]
  const bool* mask;         // [R] or null
  int64_t n_rays;
  bool background_per_ray;
  float delta;

  LN_HD bool counts(int64_t ray) const { return kept[ray] && (!mask || mask[ray]); }

  // Exact at both ends: a transparent pixel is its background, an opaque one its color.
  LN_HD float truth(int64_t ray, int c) const {
    const float end = target[3 * ray + c];
    if (!alpha) return end;
    const float start = background[(background_per_ray ? 3 * ray : 0) + c], a = alpha[ray];
    return a < 0.5f ? start + a * (end - start) : end - (end - start) * (1.0f - a);
  }
  LN_HD float error(int64_t ray, int c) const { return rgb[3 * ray + c] - truth(ray, c); }
};

// Huber's function as torch.nn.functional.huber_loss has it; NaN stays NaN.
LN_HD float huber(float error, float delta) {
  const float size = fabsf(error);
  return size < delta ? 0.5f * size * size : delta * (size - 0.5f * delta);
}
LN_HD float huber_slope(float error, float delta) { return error <= -delta ? -delta : error >= delta ? delta : error; }

// The share of one color in a mean over 3 n of them; at least one ray, so that none at all gives 0.
LN_HD float mean_share(int64_t n) { return 1.0f / float(3 * (n > 1 ? n : 1)); }

}  // namespace lightning_nerf::ray_loss
