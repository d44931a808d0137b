// Which samples of a ray are worth evaluating. Transmittance and opacity are compared as optical depths, which only add:
// T >= eps is depth <= -log(eps), and alpha >= a is depth of the one sample >= -log(1 - a).
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::visibility {

// The packed samples of all rays.
struct Samples {
  const float* densities;   // [N]
  const float* t_starts;    // [N]
  const float* t_ends;      // [N]
  const int32_t* offsets;   // [R + 1]
  const float* alpha_thre;  // []
  int64_t n_rays;
  double log_eps;
  int64_t first, last;  // only the samples of a ray from this one to before that one are chosen; all are in front of others
};

// Those that are visible.
struct Kept {
  float* t_starts;       // [N']
  float* t_ends;         // [N']
  int32_t* ray_indices;  // [N']
  int32_t* sources;      // [N']
};

struct Limits {
  double before;  // greatest optical depth in front of a sample that is still visible
  double within;  // least optical depth of the sample itself
};

// `log_eps` = log(early_stop_eps).
LN_HD Limits limits_of(double log_eps, float alpha_thre) {
  return {-log_eps, alpha_thre <= 0.0f ? 0.0 : -log1p(-double(alpha_thre))};
}

// Optical depth of one sample. NaN and negative densities count as 0, an infinite one as opaque unless its length is 0.
LN_HD double optical_depth(float density, float t_start, float t_end) {
  const float length = t_end - t_start;
  return density > 0.0f && length > 0.0f ? double(density) * double(length) : 0.0;
}

LN_HD bool visible(const Limits& limits, double before, double within) {
  return before <= limits.before && within >= limits.within;
}

}  // namespace lightning_nerf::visibility
