// What one sample does to the light of its ray, and the derivative (Max, "Optical models for direct volume rendering", TVCG
// 1995, as NeRF uses it). Loops, scans and sums belong to the launchers.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf {

constexpr int kMaxChannels = 32;  // per call; the public function takes more in passes

// The packed samples of all rays, as the kernels see them.
struct Samples {
  const float* densities;  // [N]
  const float* channels;   // [N, C]
  const float* t_starts;   // [N]
  const float* t_ends;     // [N]
  const int32_t* offsets;  // [R + 1]
  const float* background;  // [3] or [R, 3], behind the first three channels; null: none
  int64_t n, n_rays;
  int n_channels;
  bool background_per_ray;

  LN_HD const float* behind(int64_t ray) const { return background_per_ray ? background + 3 * ray : background; }
  LN_HD int64_t begin(int64_t ray) const { return offsets[ray] < n ? offsets[ray] : n; }  // never past the memory
};

struct Composited {
  float* channels;     // [R, C]
  float* opacity;      // [R]
  float* depth;        // [R]
  int32_t* n_samples;  // [R]
  float* weights;      // [N] or null
};

// What the loss says of the outputs; null where it says nothing.
struct Cotangents {
  const float* channels;  // [R, C]
  const float* opacity;   // [R]
  const float* depth;     // [R]
  const float* weights;   // [N]
};

struct Gradients {
  float* densities;  // [N]
  float* channels;   // [N, C] or null
};

struct Absorption {
  float alpha;        // 1 - exp(-density * delta)
  float transmitted;  // exp(-density * delta)
};

// A sample whose density is negative or NaN, or whose interval is empty, is void: clear, and without gradient.
LN_HD bool is_void(float density, float delta) { return !(density >= 0.0f && delta > 0.0f); }

// Both parts to about two units in the last place, with one exponential or none. Transmittance is then a product of
// `transmitted`: an infinite density makes it 0, and nothing ever computes inf - inf or inf * 0.
LN_HD Absorption absorb(float density, float delta) {
  if (is_void(density, delta)) return {0.0f, 1.0f};
  const float x = density * delta;
  if (x < 0.35f) {
    // 1 - exp(-x) by its series; the first term left out is x^7 / 8! = 1.6e-8 of the whole.
    const float series = 1.0f + x * (-1.0f / 2 + x * (1.0f / 6 + x * (-1.0f / 24 + x * (1.0f / 120 +
                         x * (-1.0f / 720 + x * (1.0f / 5040))))));
    const float alpha = x * series;
    return {alpha, 1.0f - alpha};
  }
#ifdef __CUDA_ARCH__
  // 2 + 1.2 x units in the last place. A ray's product of them is off by at most 7 X exp(-X) <= 2.6 units of 6e-8, where X
  // is its optical depth in samples this deep: of the order of one rounding of the result.
  const float transmitted = __expf(-x);
#else
  const float transmitted = expf(-x);
#endif
  return {1.0f - transmitted, transmitted};
}

// d loss / d density of sample i, from own = g_i times the transmittance behind the sample, where g_i = d loss / d weight_i, and
// later = sum over j > i of g_j weight_j. `later` is summed from the ray's end, never as a total minus a prefix: both terms
// then shrink with the transmittance, and so does their rounding error. Noise on hidden samples would count: Adam divides a
// gradient by its own size.
LN_HD float density_gradient(float delta, float own, float later) { return delta * (own - later); }

}  // namespace lightning_nerf
