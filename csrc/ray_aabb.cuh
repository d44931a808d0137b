// One ray against one box: the slab test of Kay and Kajiya, "Ray tracing complex scenes", SIGGRAPH 1986.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::ray_aabb {

struct Span {
  float t_min, t_max;
  bool hit;
};

LN_HD Span intersect(
    const float* origin,     // [3]
    const float* direction,  // [3]
    const float* aabb) {     // [2, 3]
  Span span{-INFINITY, INFINITY, true};
  for (int axis = 0; axis < 3; ++axis) {
    const float o = origin[axis], d = direction[axis], low = aabb[axis], high = aabb[3 + axis];
    // Each condition is false for NaN. Parallel to this slab: wholly inside of it, or outside.
    span.hit &= low < high;
    if (d == 0.0f) {
      span.hit &= low <= o && o <= high;
      continue;
    }
    const float t_low = (low - o) / d, t_high = (high - o) / d;
    span.hit &= t_low == t_low && t_high == t_high;
    span.t_min = fmaxf(span.t_min, fminf(t_low, t_high));
    span.t_max = fminf(span.t_max, fmaxf(t_low, t_high));
  }
  span.hit &= span.t_min < span.t_max;
  if (!span.hit) span.t_min = span.t_max = INFINITY;
  return span;
}

}  // namespace lightning_nerf::ray_aabb
