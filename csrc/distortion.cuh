// The distortion of one sample within its ray: what lies in front of it and behind it, weight times distance.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::distortion {

struct Samples {
  const float* weights;    // [N]
  const float* t_starts;   // [N]
  const float* t_ends;     // [N]
  const int32_t* offsets;  // [R + 1], CSR
  int64_t n;
  int64_t n_rays;

  // In [0, n] whatever the offsets hold.
  LN_HD int64_t begin(int64_t ray) const {
    const int64_t at = offsets[ray];
    return at < 0 ? 0 : at > n ? n : at;
  }
  // The middle, measured from where the ray's first sample begins: sums of weight times place then cancel least.
  LN_HD float middle(int64_t i, float origin) const { return 0.5f * ((t_starts[i] - origin) + (t_ends[i] - origin)); }
  LN_HD float length(int64_t i) const { return t_ends[i] - t_starts[i]; }
};

// Weights, and weights times middles, of some samples.
template <typename T>
struct Sums {
  T weight, moment;
};

// The derivative of a ray's distortion in one weight; before and behind hold the other samples of the ray.
template <typename T>
LN_HD float slope(float weight, T middle, float length, Sums<T> before, Sums<T> behind) {
  const T pairs = (middle * before.weight - before.moment) + (behind.moment - middle * behind.weight);
  return float(T(2) * pairs + T(weight) * T(length) * T(2.0 / 3.0));
}

}  // namespace lightning_nerf::distortion
