// Sums over the lanes of a warp, for kernels with a warp per ray or row. All lanes take part.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf {

constexpr int kWarp = 32;

// A value's sum over the lanes up to this one.
template <typename T>
__device__ T inclusive(T value, int lane) {
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const T other = __shfl_up_sync(kFullWarp, value, step);
    if (lane >= step) value += other;
  }
  return value;
}

template <typename T>
__device__ T total(T value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kFullWarp, value, step);
  return value;
}

}  // namespace lightning_nerf
