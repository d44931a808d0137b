// The running sum of counts, cut off at a capacity, on a GPU: no state between blocks, so nothing to clear.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::pack {

constexpr int kPackThreads = 1024;
constexpr int kMaxTiles = kPackThreads;  // so that a block can sum them at once
constexpr int kDirectTiles = 64;  // up to so many, each block sums the counts before its own itself: no second launch

// A saturated count must not fit in any capacity, which is at most INT32_MAX. Sums of up to 2^31 of these fit in int64.
__device__ inline int64_t widen(int32_t count) { return count == INT32_MAX ? int64_t(1) << 32 : int64_t(count); }

// Inclusive sums along the block's threads; `total` over all of them.
__device__ inline int64_t block_scan(int64_t value, int64_t& total) {
  __shared__ int64_t warp_sums[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  for (int step = 1; step < 32; step *= 2) {
    const int64_t before = __shfl_up_sync(kFullWarp, value, step);
    if (lane >= step) value += before;
  }
  if (lane == 31) warp_sums[warp] = value;
  __syncthreads();
  int64_t sums = warp_sums[lane];
  for (int step = 1; step < 32; step *= 2) {
    const int64_t before = __shfl_up_sync(kFullWarp, sums, step);
    if (lane >= step) sums += before;
  }
  total = __shfl_sync(kFullWarp, sums, 31);
  const int64_t warps_before = __shfl_sync(kFullWarp, sums, warp > 0 ? warp - 1 : 0);
  __syncthreads();  // the next call may write warp_sums
  return warp > 0 ? value + warps_before : value;
}

__device__ inline int64_t warp_sum(
    const int32_t* __restrict__ counts,  // [R]
    int64_t begin, int64_t end) {
  int64_t sum = 0;
#pragma unroll 8
  for (int64_t i = begin + (threadIdx.x & 31); i < end; i += 32) sum += widen(counts[i]);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
  return sum;
}

// A warp per tile.
__global__ void sums_kernel(
    const int32_t* __restrict__ counts,  // [R]
    int64_t n_rays, int64_t tile_size, int64_t n_tiles,
    int64_t* __restrict__ sums) {  // [n_tiles]
  const int64_t tile = (blockIdx.x * int64_t(blockDim.x) + threadIdx.x) / 32;
  if (tile >= n_tiles) return;
  const int64_t sum = warp_sum(counts, tile * tile_size, min(n_rays, (tile + 1) * tile_size));
  if ((threadIdx.x & 31) == 0) sums[tile] = sum;
}

// A block per tile of consecutive rays.
__global__ void __launch_bounds__(kPackThreads) offsets_kernel(
    const int32_t* __restrict__ counts,  // [R]
    const int64_t* __restrict__ sums,    // [tiles] or null
    const bool* __restrict__ before,     // [R] or null
    int64_t n_rays, int64_t tile_size, int64_t capacity,
    int32_t* __restrict__ offsets,  // [R + 1]
    bool* __restrict__ kept) {      // [R]
  __shared__ int64_t direct[kDirectTiles], crossing_sum;
  __shared__ int crossing;     // the tile where the capacity ends
  __shared__ int64_t fitting;  // the greatest sum that fits
  const int own = blockIdx.x;
  if (!sums) {
    for (int tile = threadIdx.x / 32; tile < own; tile += kPackThreads / 32) {
      const int64_t sum = warp_sum(counts, tile * tile_size, (tile + 1) * tile_size);
      if ((threadIdx.x & 31) == 0) direct[tile] = sum;
    }
  }
  __syncthreads();
  const int i = threadIdx.x;
  const int64_t value = i < own ? (sums ? sums[i] : direct[i]) : 0;
  int64_t total;
  const int64_t up_to = block_scan(value, total);
  if (i == 0) crossing = own, crossing_sum = fitting = total;
  __syncthreads();
  if (total > capacity && i < own && up_to > capacity && up_to - value <= capacity)  // one thread
    crossing = i, crossing_sum = fitting = up_to - value;
  __syncthreads();
  // Sums fit up to some ray, from which on none does. If that lies in an earlier tile, look there for the last that fits.
  const int64_t first = crossing * tile_size, stop = min(n_rays, first + tile_size);
  int64_t sum_before = crossing_sum;
  for (int64_t chunk = first; chunk < stop; chunk += kPackThreads) {
    const int64_t ray = chunk + i;
    const int64_t sum = sum_before + block_scan(ray < stop ? widen(counts[ray]) : 0, total);
    const bool fits = ray < stop && sum <= capacity;
    sum_before += total;
    const int n_fits = __syncthreads_count(fits);
    if (fits && i == n_fits - 1) fitting = sum;
    __syncthreads();
    if (crossing == own && ray < stop) {
      offsets[ray + 1] = int32_t(fits ? sum : fitting);
      kept[ray] = fits && (!before || before[ray]);
    }
    __syncthreads();  // before the next chunk's last that fits
  }
  if (crossing != own) {
    for (int64_t ray = own * tile_size + i; ray < min(n_rays, (own + 1) * tile_size); ray += kPackThreads) {
      offsets[ray + 1] = int32_t(fitting);
      kept[ray] = false;
    }
  }
  if (own == 0 && i == 0) offsets[0] = 0;
}

}  // namespace lightning_nerf::pack
