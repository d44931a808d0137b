// What one sample does to the light of its ray, and the derivative (Max, "Optical models for direct volume rendering", TVCG
// 1995, as NeRF uses it). Loops, scans and sums belong to the launchers.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::composite {

constexpr int kMaxChannels = 32;  // per call; the public function takes more in passes

// Where a sample lies on its ray.
struct Interval {
  float delta, middle;
};

// The packed samples of all rays, as the kernels see them.
struct Samples {
  const float* densities;   // [N], or alphas
  const float* channels;    // [N, C]
  const float* t_starts;    // [N], or middles
  const float* t_ends;      // [N], or lengths
  const int32_t* offsets;   // [R + 1]
  const float* background;  // [3] or [R, 3], behind the first three channels; null: none
  int64_t n, n_rays;
  int n_channels;
  bool background_per_ray, alphas_given, deltas_given;

  LN_HD const float* behind(int64_t ray) const { return background_per_ray ? background + 3 * ray : background; }

  // Never outside the memory, whatever the offsets hold.
  LN_HD int64_t begin(int64_t ray) const {
    const int entry = offsets[ray], end = int(n);
    return entry < 0 ? 0 : entry < end ? entry : end;
  }
  LN_HD Interval interval(float t_start, float t_end) const {
    if (deltas_given) return {t_end, t_start};
    return {t_end - t_start, 0.5f * (t_start + t_end)};
  }
};

struct Composited {
  float* channels;     // [R, C]
  float* opacity;      // [R]
  float* depth;        // [R]
  int32_t* n_samples;  // [R]
  float* weights;      // [N] or null
  float* trans;        // [N] or null
  float* alphas;       // [N] or null
};

// What the loss says of the outputs; null where it says nothing.
struct Cotangents {
  const float* channels;  // [R, C]
  const float* opacity;   // [R]
  const float* depth;     // [R]
  const float* weights;   // [N]
  const float* trans;     // [N]
  const float* alphas;    // [N]
};

struct Gradients {
  float* densities;  // [N]
  float* channels;   // [N, C] or null
};

struct Absorption {
  float alpha;        // 1 - exp(-density * delta)
  float transmitted;  // 1 - alpha
};

// exp(-x) for x >= 0; on CUDA numbers below 2^-126 become 0.
LN_HD float exp_minus(float x) {
#ifdef __CUDA_ARCH__
  // 2 + 1.2 x units in the last place. A ray's product of them is off by at most 7 X exp(-X) <= 2.6 units of 6e-8, where X
  // is its optical depth in samples this deep: of the order of one rounding of the result.
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(-1.442695041f * x));
  return result;
#else
  return expf(-x);
#endif
}

// A sample is void, that is clear and without gradient, if its density or alpha is negative or NaN, or if it has a density
// and an empty interval.
LN_HD bool is_void(bool alphas_given, float density, float delta) {
  return !(density >= 0.0f && (alphas_given || delta > 0.0f));
}

// Both parts to about two units in the last place. Transmittance is then a product of `transmitted`: an infinite density
// makes it 0, and nothing ever computes inf - inf or inf * 0.
LN_HD Absorption absorb(bool alphas_given, float density, float delta) {
  const bool clear = is_void(alphas_given, density, delta);
  if (alphas_given) {
    const float alpha = clear ? 0.0f : density < 1.0f ? density : 1.0f;
    return {alpha, 1.0f - alpha};
  }
  const float x = density * delta;
  // 1 - exp(-x) by its series; the first term left out is x^7 / 8! = 1.6e-8 of the whole where x is 0.35.
  const float series =
      x * (1.0f +
           x * (-1.0f / 2 + x * (1.0f / 6 + x * (-1.0f / 24 + x * (1.0f / 120 + x * (-1.0f / 720 + x * (1.0f / 5040)))))));
  const float transmitted = exp_minus(x);
  const bool thin = x < 0.35f;
  return {clear ? 0.0f : thin ? series : 1.0f - transmitted, clear ? 1.0f : thin ? 1.0f - series : transmitted};
}

// d alpha / d density, or / d alpha as given; an alpha above 1 counts as 1.
LN_HD float slope(bool alphas_given, float density, float delta, float transmitted) {
  if (is_void(alphas_given, density, delta)) return 0.0f;
  if (alphas_given) return density > 1.0f ? 0.0f : 1.0f;
  return transmitted > 0.0f ? delta * transmitted : 0.0f;  // infinite density: exactly 0
}

// The derivative, from the ray's end to its front. Let T_i be the transmittance in front of sample i, g_i = d loss / d weight_i
// and u_i = d loss / d T_i where that is an output; then all that depends on T_i adds up to
//   lambda_i = u_i + alpha_i g_i + (1 - alpha_i) lambda_{i+1},      d loss / d alpha_i = T_i (g_i - lambda_{i+1})
// No division: exact where alpha is 0 or 1. And a gradient's rounding error shrinks with the transmittance, as it must: noise
// on hidden samples would count, since Adam divides a gradient by its own size.
struct Lit {
  float transmitted;
  float given;  // u + alpha g: what the sample adds to lambda
  float g;
  float gain;  // slope times T; 0: g may be anything
  float own;   // slope times the cotangent of alpha itself

  LN_HD float gradient(float lambda) const { return (gain != 0.0f ? gain * (g - lambda) : 0.0f) + own; }
  LN_HD float pass(float lambda) const { return given + transmitted * lambda; }
};

// u, v: cotangents of T and alpha. What no light reaches adds nothing to lambda, so that its channels may hold anything;
// where alphas are given it does: an opaque sample's gradient depends on what is behind it.
LN_HD Lit
light(bool alphas_given, float density, float delta, const Absorption& a, float before, float g, float u, float v) {
  const bool lit = alphas_given ? a.alpha > 0.0f : before * a.alpha > 0.0f;
  const float here = slope(alphas_given, density, delta, a.transmitted);
  return {a.transmitted, (lit ? a.alpha * g : 0.0f) + u, g, here * before, here != 0.0f ? here * v : 0.0f};
}

}  // namespace lightning_nerf::composite
