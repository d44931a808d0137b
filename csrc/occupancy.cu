#include "cuda.cuh"
#include "occupancy.cuh"

#include <algorithm>

namespace lightning_nerf {
namespace {

constexpr int kBlock = 1024;  // cells counted together before a draw's search: one thread block, 32 words of bits
constexpr int kWords = kBlock / 32;
constexpr int kMaxPartials = 1024;  // partial sums of the mean: their number follows from the grid's size alone
constexpr unsigned kAll = 0xFFFFFFFFu;

// Selection: (1) the grid as bits and each block's count, (2) a running sum over each level's blocks, (3) the draws.
__global__ void __launch_bounds__(kBlock) select_count_kernel(
    const bool* __restrict__ binaries,  // [levels, n]
    int64_t n, int64_t n_blocks,
    uint32_t* __restrict__ words,  // [levels, n_blocks, kWords]
    int32_t* __restrict__ counts) {  // [levels, n_blocks]
  __shared__ int warp_counts[kWords];
  const int64_t block = blockIdx.x;  // of all levels
  const int64_t cell = block % n_blocks * kBlock + threadIdx.x;
  const bool occupied = cell < n && binaries[block / n_blocks * n + cell];
  const unsigned word = __ballot_sync(kAll, occupied);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) {
    words[block * kWords + warp] = word;
    warp_counts[warp] = __popc(word);
  }
  __syncthreads();
  if (warp == 0) {
    const int total = __reduce_add_sync(kAll, warp_counts[lane]);
    if (lane == 0) counts[block] = total;
  }
}

__global__ void __launch_bounds__(kBlock) select_scan_kernel(
    int64_t n_blocks,
    int32_t* __restrict__ counts) {  // [levels, n_blocks], becomes its inclusive sum along each level
  __shared__ int warp_sums[32];
  int32_t* const level = counts + blockIdx.x * n_blocks;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int carry = 0;
  for (int64_t begin = 0; begin < n_blocks; begin += kBlock) {
    const int64_t i = begin + threadIdx.x;
    int sum = i < n_blocks ? level[i] : 0;
    for (int step = 1; step < 32; step *= 2) {
      const int below_me = __shfl_up_sync(kAll, sum, step);
      if (lane >= step) sum += below_me;
    }
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    if (warp == 0) {
      int warp_sum = warp_sums[lane];
      for (int step = 1; step < 32; step *= 2) {
        const int below_me = __shfl_up_sync(kAll, warp_sum, step);
        if (lane >= step) warp_sum += below_me;
      }
      warp_sums[lane] = warp_sum;
    }
    __syncthreads();
    if (i < n_blocks) level[i] = carry + (warp > 0 ? warp_sums[warp - 1] : 0) + sum;
    carry += warp_sums[31];
    __syncthreads();  // before the next round overwrites warp_sums
  }
}

__global__ void select_draw_kernel(
    const int64_t* __restrict__ key,  // [3]
    const uint32_t* __restrict__ words,  // [levels, n_blocks, kWords]
    const int32_t* __restrict__ ends,  // [levels, n_blocks] inclusive
    int64_t n, int64_t n_blocks, int64_t n_rows, int64_t per_level, int64_t n_uniform,
    int32_t* __restrict__ cells) {  // [n_rows]
  const int64_t row = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (row >= n_rows) return;
  const int64_t level = row / per_level;
  const int32_t* const level_ends = ends + level * n_blocks;
  const int64_t total = level_ends[n_blocks - 1];
  const uint32_t draw = cell_draw(key, row);
  if (row % per_level < n_uniform || total == 0) {
    cells[row] = int32_t(level * n + below(draw, n));
    return;
  }
  int rank = int(below(draw, total));
  int64_t low = 0, high = n_blocks - 1;  // the first block whose end lies above rank
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (level_ends[middle] > rank) high = middle;
    else low = middle + 1;
  }
  if (low > 0) rank -= level_ends[low - 1];
  const uint32_t* const block_words = words + (level * n_blocks + low) * kWords;
  int w = 0;
  uint32_t word = block_words[0];
  while (rank >= __popc(word)) {
    rank -= __popc(word);
    word = block_words[++w];
  }
  cells[row] = int32_t(level * n + low * kBlock + w * 32 + nth_bit(word, rank));
}

Tensor occupancy_select(const Tensor& key, const Tensor& binaries, int64_t n_uniform, int64_t n_occupied) {
  check(key, ScalarType::Long, "key");
  check(binaries, ScalarType::Bool, "binaries");
  const Launch launch(binaries);
  const int64_t levels = binaries.size(0), per_level = n_uniform + n_occupied;
  const int64_t n = levels > 0 ? binaries.numel() / levels : 0;  // cells per level
  STD_TORCH_CHECK(n > 0 && binaries.numel() < (int64_t(1) << 31), "binaries must have 1 to 2^31 - 1 cells");
  const int64_t n_rows = levels * per_level;
  Tensor cells = empty(key, {n_rows}, ScalarType::Int);
  if (n_rows == 0) return cells;
  const int64_t n_blocks = (n + kBlock - 1) / kBlock;
  Tensor words = empty(key, {levels * n_blocks * kWords}, ScalarType::Int);
  Tensor counts = empty(key, {levels * n_blocks}, ScalarType::Int);
  uint32_t* words_data = reinterpret_cast<uint32_t*>(mutable_data<int32_t>(words));
  int32_t* counts_data = mutable_data<int32_t>(counts);
  select_count_kernel<<<static_cast<unsigned>(levels * n_blocks), kBlock, 0, launch.stream>>>(
      data<bool>(binaries), n, n_blocks, words_data, counts_data);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  select_scan_kernel<<<static_cast<unsigned>(levels), kBlock, 0, launch.stream>>>(n_blocks, counts_data);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  select_draw_kernel<<<blocks(n_rows), kThreads, 0, launch.stream>>>(
      data<int64_t>(key), words_data, counts_data, n, n_blocks, n_rows, per_level, n_uniform,
      mutable_data<int32_t>(cells));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return cells;
}

__global__ void points_kernel(
    const int64_t* __restrict__ key,  // [3]
    const int32_t* __restrict__ cells,  // [n]
    const float* __restrict__ aabb,  // [2, 3]
    GridShape shape, int64_t n,
    float* __restrict__ points) {  // [n, 3]
  const int64_t row = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (row < n) cell_point(key, row, cells[row], shape, aabb, points + 3 * row);
}

Tensor occupancy_points(
    const Tensor& key, const Tensor& cells, const Tensor& aabb, int64_t x, int64_t y, int64_t z) {
  check(key, ScalarType::Long, "key");
  check_int(cells, "cells");
  check_float(aabb, "aabb");
  const Launch launch(cells);
  const int64_t n = cells.numel();
  Tensor points = empty(key, {n, 3}, ScalarType::Float);
  if (n == 0) return points;
  points_kernel<<<blocks(n), kThreads, 0, launch.stream>>>(
      data<int64_t>(key), data<int32_t>(cells), data<float>(aabb), {int32_t(x), int32_t(y), int32_t(z)}, n, mutable_data<float>(points));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return points;
}

__global__ void fill_kernel(
    float value, int64_t n,
    float* __restrict__ out) {  // [n]
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i < n) out[i] = value;
}

// Non-negative floats order like their bits, read as int32; -1 has the sign bit and is below them all. A maximum doesn't
// depend on who comes first.
__global__ void newest_kernel(
    const int32_t* __restrict__ cells,  // [n_rows]
    const float* __restrict__ values,  // [n_rows]
    int64_t n_rows, int64_t n,
    float* __restrict__ newest) {  // [n], -1 before
  const int64_t row = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (row >= n_rows) return;
  const int64_t cell = cells[row];
  const float value = values[row];
  if (cell < 0 || cell >= n || !usable(value)) return;
  atomicMax(reinterpret_cast<int*>(newest) + cell, __float_as_int(value == 0.0f ? 0.0f : value));  // no -0
}

Tensor occupancy_newest(const Tensor& cells, const Tensor& values, int64_t n) {
  check_int(cells, "cells");
  check_float(values, "values");
  STD_TORCH_CHECK(cells.numel() == values.numel(), "cells and values must have one length");
  const Launch launch(values);
  Tensor newest = empty(values, {n}, ScalarType::Float);
  if (n == 0) return newest;
  fill_kernel<<<blocks(n), kThreads, 0, launch.stream>>>(-1.0f, n, mutable_data<float>(newest));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const int64_t n_rows = cells.numel();
  if (n_rows == 0) return newest;
  newest_kernel<<<blocks(n_rows), kThreads, 0, launch.stream>>>(
      data<int32_t>(cells), data<float>(values), n_rows, n, mutable_data<float>(newest));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return newest;
}

// Sum of (sum, count) over the block, for every thread of it, always in the same order.
__device__ double2 block_sum(double2 part) {
  __shared__ double2 warp_parts[kThreads / 32];
  __shared__ double2 result;
  for (int step = 16; step > 0; step /= 2) {
    part.x += __shfl_down_sync(kAll, part.x, step);
    part.y += __shfl_down_sync(kAll, part.y, step);
  }
  if (threadIdx.x % 32 == 0) warp_parts[threadIdx.x / 32] = part;
  __syncthreads();
  if (threadIdx.x == 0) {
    double2 total = warp_parts[0];
    for (int warp = 1; warp < kThreads / 32; ++warp) {
      total.x += warp_parts[warp].x;
      total.y += warp_parts[warp].y;
    }
    result = total;
  }
  __syncthreads();
  return result;
}

__global__ void __launch_bounds__(kThreads) decay_kernel(
    const float* __restrict__ newest,  // [n]
    float decay, int64_t n,
    float* __restrict__ occs,  // [n], in place
    double2* __restrict__ partials) {  // [gridDim.x] sum and number of the visible cells
  double2 part = make_double2(0.0, 0.0);
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < n; i += gridDim.x * int64_t(kThreads)) {
    const float occ = decayed_max(occs[i], newest[i], decay);
    occs[i] = occ;
    if (occ >= 0.0f) {
      part.x += double(occ);
      part.y += 1.0;
    }
  }
  part = block_sum(part);
  if (threadIdx.x == 0) partials[blockIdx.x] = part;
}

// Every block adds up all partial sums for itself, in the same order: cheaper than one more launch.
__global__ void __launch_bounds__(kThreads) threshold_kernel(
    const float* __restrict__ occs,  // [n]
    const double2* __restrict__ partials,  // [n_partials]
    int n_partials, float threshold, int64_t n,
    bool* __restrict__ binaries,  // [n]
    float* __restrict__ mean) {  // []
  double2 part = make_double2(0.0, 0.0);
  for (int i = threadIdx.x; i < n_partials; i += kThreads) {
    part.x += partials[i].x;
    part.y += partials[i].y;
  }
  part = block_sum(part);
  const float average = part.y > 0.0 ? float(part.x / part.y) : 0.0f;
  if (blockIdx.x == 0 && threadIdx.x == 0) *mean = average;
  const float floor = fminf(average, threshold);
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < n; i += gridDim.x * int64_t(kThreads))
    binaries[i] = is_occupied(occs[i], floor);
}

void occupancy_update_(
    Tensor occs, Tensor binaries, Tensor mean, const Tensor& newest, double decay, double threshold) {
  check_float(occs, "occs");
  check(binaries, ScalarType::Bool, "binaries");
  check_float(mean, "mean");
  check_float(newest, "newest");
  const int64_t n = occs.numel();
  STD_TORCH_CHECK(binaries.numel() == n && newest.numel() == n && mean.numel() == 1,
                  "occs, binaries and newest must have one size, mean one element");
  const Launch launch(occs);
  const int n_partials = int(std::clamp<int64_t>((n + kThreads - 1) / kThreads, 1, kMaxPartials));
  Tensor partials = empty(occs, {n_partials, 2}, ScalarType::Double);
  double2* partials_data = reinterpret_cast<double2*>(mutable_data<double>(partials));
  decay_kernel<<<n_partials, kThreads, 0, launch.stream>>>(
      data<float>(newest), float(decay), n, mutable_data<float>(occs), partials_data);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  threshold_kernel<<<n_partials, kThreads, 0, launch.stream>>>(
      data<float>(occs), partials_data, n_partials, float(threshold), n, mutable_data<bool>(binaries),
      mutable_data<float>(mean));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("occupancy_select", TORCH_BOX(&lightning_nerf::occupancy_select));
  m.impl("occupancy_points", TORCH_BOX(&lightning_nerf::occupancy_points));
  m.impl("occupancy_newest", TORCH_BOX(&lightning_nerf::occupancy_newest));
  m.impl("occupancy_update_", TORCH_BOX(&lightning_nerf::occupancy_update_));
}
