#include "cuda.cuh"
#include "rounds.h"
#include "warp_sums.cuh"

#include <algorithm>

namespace lightning_nerf::rounds {
namespace {

__global__ void mark_kernel(
    const float* __restrict__ near,  // [R]
    const float* __restrict__ far,   // [R]
    int64_t n_rays,
    int32_t* __restrict__ counts) {  // [R]
  const int64_t ray = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (ray < n_rays) counts[ray] = is_active(near[ray], far[ray]);
}

__global__ void choose_kernel(const Choice c) {
  const int64_t slot = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (slot < c.count) c.choose(slot);
}

// A warp per row; besides, each thread one entry of the tail and one offset.
__global__ void __launch_bounds__(kThreads) write_kernel(const Intervals s) {
  const int64_t thread = blockIdx.x * int64_t(kThreads) + threadIdx.x, row = thread / kWarp;
  if (s.k * s.n + thread < s.capacity) s.write_tail(s.k * s.n + thread);
  if (thread <= s.n_rays) s.write_offset(thread);
  if (row >= s.k) return;
  const Way way(s.near[row], s.far[row], s.spacing);
  for (int64_t j = threadIdx.x % kWarp; j <= s.n; j += kWarp) s.write_edge(way, row, j);
}

// A warp per row. In float64, so that the order of addition does not show.
__global__ void __launch_bounds__(kThreads) accumulate_kernel(const Cdfs c) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = (blockIdx.x * int64_t(kThreads) + threadIdx.x) / kWarp;
  if (row >= c.k) return;  // the whole warp
  const float power = c.power();
  float* cdf = c.cdfs + row * (c.n + 1);
  if (lane == 0) cdf[0] = 0.0f;
  double carried = 0.0;
  for (int64_t base = 0; base < c.n; base += kWarp) {
    const int64_t i = base + lane;
    const double sum = inclusive(i < c.n ? double(c.density(row * c.n + i, power)) : 0.0, lane) + carried;
    if (i < c.n) cdf[i + 1] = float(sum);
    carried = __shfl_sync(kFullWarp, sum, kWarp - 1);
  }
}

__global__ void find_kernel(const Counting c) {
  const int64_t row = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (row < c.k) c.write(row);
}

void mark(const Tensor& like, const float* near, const float* far, int64_t n_rays, int32_t* counts) {
  const Launch launch(like);
  if (n_rays == 0) return;
  mark_kernel<<<blocks(n_rays), kThreads, 0, launch.stream>>>(near, far, n_rays, counts);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void choose(const Tensor& like, const Choice& c) {
  const Launch launch(like);
  if (c.count == 0) return;
  choose_kernel<<<blocks(c.count), kThreads, 0, launch.stream>>>(c);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void write(const Tensor& like, const Intervals& s) {
  const Launch launch(like);
  const int64_t threads = std::max({s.k * kWarp, s.capacity - s.k * s.n, s.n_rays + 1});
  write_kernel<<<blocks(threads), kThreads, 0, launch.stream>>>(s);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void accumulate(const Tensor& like, const Cdfs& c) {
  const Launch launch(like);
  if (c.k == 0) return;
  accumulate_kernel<<<blocks(c.k * kWarp), kThreads, 0, launch.stream>>>(c);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void find(const Tensor& like, const Counting& c) {
  const Launch launch(like);
  if (c.k == 0) return;
  find_kernel<<<blocks(c.k), kThreads, 0, launch.stream>>>(c);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("round_rays", TORCH_BOX((&round_rays<mark, pack::run_on_cuda, choose>)));
  m.impl("round_samples", TORCH_BOX(&round_samples<write>));
  m.impl("round_cdfs", TORCH_BOX(&round_cdfs<accumulate>));
  m.impl("round_counting", TORCH_BOX(&round_counting<find>));
}

}  // namespace lightning_nerf::rounds
