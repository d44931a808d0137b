// How many rays the next step takes.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::ray_budget {

struct Arguments {
  int32_t* n_rays;           // [], in place
  const int32_t* n_samples;  // []
  const int64_t* n_counted;  // []
  float target;
  int32_t max_rays;
};

// From `rays` to the number that would make `target` samples at the rate of n_counted rays with n_samples, at most doubled or
// halved.
LN_HD int32_t next_rays(int32_t rays, int32_t n_samples, int64_t n_counted, float target, int32_t max_rays) {
  const float per_ray = float(n_samples) / float(n_counted > 1 ? n_counted : 1);
  float wanted = target / fmaxf(per_ray, 1e-6f);
  wanted = fminf(fmaxf(wanted, 0.5f * float(rays)), 2.0f * float(rays));
  return wanted >= float(max_rays) ? max_rays : wanted > 1.0f ? int32_t(wanted) : 1;
}

}  // namespace lightning_nerf::ray_budget
