// Where a ray's samples begin, found by bisection.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::ray_offsets {

// The number of samples in front of ray `ray`; in [0, n] also where the indices are not sorted. Ray 0 begins at 0.
template <typename Index>
LN_HD int32_t ray_begin(const Index* indices, int32_t n, int64_t ray) {
  if (ray == 0) return 0;
  int32_t low = 0, high = n;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (indices[middle] < ray) low = middle + 1;
    else high = middle;
  }
  return low;
}

}  // namespace lightning_nerf::ray_offsets
