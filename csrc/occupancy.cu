#include "cuda.cuh"
#include "occupancy.h"

#include <algorithm>

namespace lightning_nerf::occupancy {
namespace {

constexpr int kSelectThreads = 1024;
constexpr int kBlock = 4 * kSelectThreads;  // cells that a thread block counts and lists
constexpr int kMaxPartials = 1024;          // partial sums of the mean: their number follows from the grid's size alone
constexpr int kBatch = 4;                   // elements that a thread loads at once

// Inclusive sums along the block's kSelectThreads threads; `total` over all of them.
__device__ int block_scan(int value, int& total) {
  __shared__ int warp_sums[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(kFullWarp, value, step);
    if (lane >= step) value += before;
  }
  if (lane == 31) warp_sums[warp] = value;
  __syncthreads();
  int sums = warp_sums[lane];
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(kFullWarp, sums, step);
    if (lane >= step) sums += before;
  }
  total = __shfl_sync(kFullWarp, sums, 31);
  const int warps_before = __shfl_sync(kFullWarp, sums, warp > 0 ? warp - 1 : 0);
  __syncthreads();  // the next call writes warp_sums
  return warp > 0 ? value + warps_before : value;
}

// Selection: (1) each block's occupied cells are counted, (2) the counts summed along each level, (3) the occupied cells of
// each level listed, so that (4) a draw is one look-up. Searching the sums instead is 30 dependent loads for each draw.

// This thread's four cells of block x of level y, 0 or 1, a byte each.
__device__ uint32_t four_cells(const bool* binaries, int64_t n, bool whole_words) {
  const int64_t cell = blockIdx.x * int64_t(kBlock) + 4 * threadIdx.x;
  const bool* const cells = binaries + blockIdx.y * n + cell;
  if (whole_words) return cell < n ? *reinterpret_cast<const uint32_t*>(cells) : 0;
  uint32_t four = 0;
  for (int i = 0; i < 4 && cell + i < n; ++i) four |= uint32_t(cells[i]) << (8 * i);
  return four;
}

__global__ void __launch_bounds__(kSelectThreads) select_count_kernel(
    const bool* __restrict__ binaries,  // [levels, n]
    int64_t n, bool whole_words,
    int32_t* __restrict__ counts) {  // [levels, n_blocks]
  int total;
  block_scan(__popc(four_cells(binaries, n, whole_words)), total);
  if (threadIdx.x == 0) counts[blockIdx.y * int64_t(gridDim.x) + blockIdx.x] = total;
}

__global__ void __launch_bounds__(kSelectThreads) select_scan_kernel(
    int64_t n_blocks,
    int32_t* __restrict__ counts) {  // [levels, n_blocks], becomes its inclusive sum along each level
  int32_t* const level = counts + blockIdx.x * n_blocks;
  int carry = 0, total;
  for (int64_t begin = 0; begin < n_blocks; begin += kSelectThreads) {
    const int64_t i = begin + threadIdx.x;
    const int sum = block_scan(i < n_blocks ? level[i] : 0, total);
    if (i < n_blocks) level[i] = carry + sum;
    carry += total;
  }
}

__global__ void __launch_bounds__(kSelectThreads) select_list_kernel(
    const bool* __restrict__ binaries,  // [levels, n]
    const int32_t* __restrict__ ends,   // [levels, n_blocks] inclusive
    int64_t n, bool whole_words,
    int32_t* __restrict__ occupied) {  // [levels, n] of which each level's first `total` are written
  const int64_t block = blockIdx.y * int64_t(gridDim.x) + blockIdx.x;
  uint32_t four = four_cells(binaries, n, whole_words);
  const int count = __popc(four);
  int total;
  int64_t out = blockIdx.y * n + block_scan(count, total) - count + (blockIdx.x > 0 ? ends[block - 1] : 0);
  const int cell = int(blockIdx.x * int64_t(kBlock) + 4 * threadIdx.x);
  for (int i = 0; i < 4; ++i)
    if (four >> (8 * i) & 1) occupied[out++] = cell + i;
}

__global__ void select_draw_kernel(
    const int64_t* __restrict__ key,       // [3]
    const int32_t* __restrict__ ends,      // [levels, n_blocks] inclusive
    const int32_t* __restrict__ occupied,  // [levels, n]
    int64_t n, int64_t n_blocks, int64_t per_level, int64_t n_uniform, bool cover,
    int32_t* __restrict__ cells) {  // [levels, per_level]
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x, level = blockIdx.y, row = level * per_level + i;
  if (i >= per_level) return;
  const int64_t total = ends[(level + 1) * n_blocks - 1];
  const uint32_t draw = cell_draw(key, row);
  const int64_t n_occupied = per_level - n_uniform;
  const bool uniform = i < n_uniform || total == 0;
  cells[row] = int32_t(
      level * n +
      (uniform ? below(draw, n) : occupied[level * n + occupied_rank(cover, draw, i - n_uniform, n_occupied, total)]));
}

void select_cells(const Tensor& like, const Selection& s) {
  STD_TORCH_CHECK(s.levels < 65536, "binaries has too many levels");
  const Launch launch(like);
  const int64_t levels = s.levels, n = s.n, per_level = s.per_level();
  if (levels * per_level == 0) return;
  const bool whole_words = n % 4 == 0 && reinterpret_cast<uintptr_t>(s.binaries) % 4 == 0;
  const int64_t n_blocks = blocks(n, kBlock);
  Tensor counts = empty(like, {levels * n_blocks}, ScalarType::Int);
  Tensor occupied = empty(like, {s.n_occupied > 0 ? levels * n : 0}, ScalarType::Int);
  int32_t* counts_data = mutable_data<int32_t>(counts);
  int32_t* occupied_data = mutable_data<int32_t>(occupied);
  const dim3 all_blocks(static_cast<unsigned>(n_blocks), static_cast<unsigned>(levels));
  select_count_kernel<<<all_blocks, kSelectThreads, 0, launch.stream>>>(s.binaries, n, whole_words, counts_data);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  select_scan_kernel<<<static_cast<unsigned>(levels), kSelectThreads, 0, launch.stream>>>(n_blocks, counts_data);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  if (s.n_occupied > 0) {
    select_list_kernel<<<all_blocks, kSelectThreads, 0, launch.stream>>>(
        s.binaries, counts_data, n, whole_words, occupied_data);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  const dim3 all_draws(blocks(per_level), static_cast<unsigned>(levels));
  select_draw_kernel<<<all_draws, kThreads, 0, launch.stream>>>(
      s.key, counts_data, occupied_data, n, n_blocks, per_level, s.n_uniform, s.cover, s.cells);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

__global__ void points_kernel(
    const int64_t* __restrict__ key,    // [3]
    const int32_t* __restrict__ cells,  // [n]
    const float* __restrict__ aabb,     // [2, 3]
    GridShape shape, int64_t n,
    float* __restrict__ points) {         // [n, 3]
  __shared__ float staged[3 * kThreads];  // the block's points, so that neighbors store to neighbors
  const int64_t first = blockIdx.x * int64_t(kThreads), row = first + threadIdx.x;
  if (row < n) cell_point(key, row, cells[row], shape, aabb, staged + 3 * threadIdx.x);
  __syncthreads();
  const int64_t end = min(3 * n, 3 * (first + kThreads));
  for (int64_t i = 3 * first + threadIdx.x; i < end; i += kThreads) points[i] = staged[i - 3 * first];
}

void draw_points(const Tensor& like, const Points& p) {
  const Launch launch(like);
  if (p.n == 0) return;
  points_kernel<<<blocks(p.n), kThreads, 0, launch.stream>>>(p.key, p.cells, p.aabb, p.shape, p.n, p.points);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

__global__ void fill_kernel(float value, int64_t n,
                            float* __restrict__ out) {  // [n]
  const int64_t first = blockIdx.x * int64_t(kBatch * kThreads) + threadIdx.x;
  for (int j = 0; j < kBatch; ++j)
    if (const int64_t i = first + j * kThreads; i < n) out[i] = value;
}

// Non-negative floats order like their bits, read as int32; -1 has the sign bit and is below them all. A maximum doesn't
// depend on who comes first.
__global__ void newest_kernel(
    const int32_t* __restrict__ cells,  // [n_rows]
    const float* __restrict__ values,   // [n_rows]
    int64_t n_rows, int64_t n,
    float* __restrict__ newest) {  // [n], -1 before
  const int64_t row = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (row >= n_rows) return;
  const int64_t cell = cells[row];
  const float value = values[row];
  if (cell < 0 || cell >= n || !usable(value)) return;
  atomicMax(reinterpret_cast<int*>(newest) + cell, __float_as_int(value == 0.0f ? 0.0f : value));  // no -0
}

void find_newest(const Tensor& like, const Newest& v) {
  const Launch launch(like);
  if (v.n == 0) return;
  fill_kernel<<<blocks(v.n, kBatch * kThreads), kThreads, 0, launch.stream>>>(-1.0f, v.n, v.newest);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  if (v.n_rows == 0) return;
  newest_kernel<<<blocks(v.n_rows), kThreads, 0, launch.stream>>>(v.cells, v.values, v.n_rows, v.n, v.newest);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Sum of (sum, count) over the block, for every thread of it, always in the same order.
__device__ double2 block_sum(double2 part) {
  __shared__ double2 warp_parts[kThreads / 32];
  __shared__ double2 result;
  for (int step = 16; step > 0; step /= 2) {
    part.x += __shfl_down_sync(kFullWarp, part.x, step);
    part.y += __shfl_down_sync(kFullWarp, part.y, step);
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
    float* __restrict__ occs,          // [n], in place
    double2* __restrict__ partials) {  // [gridDim.x] sum and number of the visible cells
  double2 part = make_double2(0.0, 0.0);
  const int64_t stride = gridDim.x * int64_t(kThreads);
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < n; i += kBatch * stride) {
    float old[kBatch], evaluated[kBatch];
    for (int j = 0; j < kBatch; ++j) {
      const int64_t at = i + j * stride;
      old[j] = at < n ? occs[at] : -1.0f;  // as a cell that no camera sees
      evaluated[j] = at < n ? newest[at] : -1.0f;
    }
    for (int j = 0; j < kBatch; ++j) {
      const float occ = decayed_max(old[j], evaluated[j], decay);
      if (i + j * stride < n) occs[i + j * stride] = occ;
      if (occ >= 0.0f) {
        part.x += double(occ);
        part.y += 1.0;
      }
    }
  }
  part = block_sum(part);
  if (threadIdx.x == 0) partials[blockIdx.x] = part;
}

// Every block adds up all partial sums for itself, in the same order: cheaper than one more launch.
__global__ void __launch_bounds__(kThreads) threshold_kernel(
    const float* __restrict__ occs,        // [n]
    const double2* __restrict__ partials,  // [n_partials]
    int n_partials, float threshold, int64_t n,
    bool* __restrict__ binaries,  // [n]
    float* __restrict__ mean) {   // []
  double2 part = make_double2(0.0, 0.0);
  for (int i = threadIdx.x; i < n_partials; i += kThreads) {
    part.x += partials[i].x;
    part.y += partials[i].y;
  }
  part = block_sum(part);
  const float average = part.y > 0.0 ? float(part.x / part.y) : 0.0f;
  if (blockIdx.x == 0 && threadIdx.x == 0) *mean = average;
  const float floor = fminf(average, threshold);
  const int64_t stride = gridDim.x * int64_t(kThreads);
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < n; i += kBatch * stride) {
    float occ[kBatch];
    for (int j = 0; j < kBatch; ++j) occ[j] = i + j * stride < n ? occs[i + j * stride] : 0.0f;
    for (int j = 0; j < kBatch; ++j)
      if (i + j * stride < n) binaries[i + j * stride] = is_occupied(occ[j], floor);
  }
}

void update(const Tensor& like, const Update& u) {
  const Launch launch(like);
  const int n_partials = int(std::clamp<int64_t>((u.n + kThreads - 1) / kThreads, 1, kMaxPartials));
  Tensor partials = empty(like, {n_partials, 2}, ScalarType::Double);
  double2* partials_data = reinterpret_cast<double2*>(mutable_data<double>(partials));
  decay_kernel<<<n_partials, kThreads, 0, launch.stream>>>(u.newest, u.decay, u.n, u.occs, partials_data);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  threshold_kernel<<<n_partials, kThreads, 0, launch.stream>>>(
      u.occs, partials_data, n_partials, u.threshold, u.n, u.binaries, u.mean);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("occupancy_select", TORCH_BOX(&occupancy_select<select_cells>));
  m.impl("occupancy_cover", TORCH_BOX(&occupancy_cover<select_cells>));
  m.impl("occupancy_points", TORCH_BOX(&occupancy_points<draw_points>));
  m.impl("occupancy_newest", TORCH_BOX(&occupancy_newest<find_newest>));
  m.impl("occupancy_update_", TORCH_BOX(&occupancy_update_<update>));
}

}  // namespace lightning_nerf::occupancy
