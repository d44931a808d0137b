#include "cuda.cuh"
#include "interlevel.h"
#include "warp_sums.cuh"

namespace lightning_nerf::interlevel {
namespace {

constexpr int kRowThreads = 128;  // a warp per row
constexpr int64_t kSharedBytes = 48 << 10;

// Where this warp keeps doubles of its row: in shared memory, or where rows are too long in `scratch`.
__device__ double* own_space(double* scratch, int64_t row, int64_t size) {
  extern __shared__ double shared[];
  return scratch ? scratch + row * size : shared + (threadIdx.x / kWarp) * size;
}

// Fills a row's sums C and D.
__device__ void integrate(const Rows& r, int64_t row, int lane, double* sums) {
  const float *edges = r.row_edges(row), *weights = r.row_weights(row);
  double carried = 0.0, carried_area = 0.0;
  for (int64_t base = 0; base < r.n; base += kWarp) {
    const int64_t i = base + lane;
    const bool exists = i < r.n;
    const float low = exists ? edges[i] : 0.0f, high = exists ? edges[i + 1] : 0.0f;
    const double weight = exists ? mass(weights[i], low, high) : 0.0;
    const double upto = carried + inclusive(weight, lane);
    double before = __shfl_up_sync(kFullWarp, upto, 1);
    if (lane == 0) before = carried;
    const double area = carried_area + inclusive((double(high) - double(low)) * (before + 0.5 * weight), lane);
    if (exists) {
      sums[2 * i + 2] = upto;
      sums[2 * i + 3] = area;
    }
    carried = __shfl_sync(kFullWarp, upto, kWarp - 1);
    carried_area = __shfl_sync(kFullWarp, area, kWarp - 1);
  }
  if (lane == 0) sums[0] = sums[1] = 0.0;
  __syncwarp();
}

// Each lane blurs at coarse edges, and hands its value on: an interval needs both of its ends.
__device__ double blurred_row(const Rows& r, int64_t row, int lane, double* sums, float* slopes) {
  integrate(r, row, lane, sums);
  const Blurred histogram = {r.row_edges(row), sums, r.n, r.width};
  const float *coarse_edges = r.row_coarse_edges(row), *coarse = r.row_coarse(row);
  double excess = 0.0, carried = 0.0;
  for (int64_t base = 0; base <= r.m; base += kWarp) {
    const int64_t j = base + lane;
    const double upto = j <= r.m ? histogram.upto(coarse_edges[j]) : 0.0;
    double before = __shfl_up_sync(kFullWarp, upto, 1);
    if (lane == 0) before = carried;
    carried = __shfl_sync(kFullWarp, upto, kWarp - 1);
    if (j == 0 || j > r.m) continue;
    const double weight = coarse[j - 1];
    const Term t = term(upto - before, weight, weight);
    excess += t.excess;
    slopes[j - 1] = float(t.slope);
  }
  return excess;
}

// Each lane bounds fine intervals and leaves their slopes; then each gathers, in order, those over a coarse interval.
__device__ double bounded_row(const Rows& r, int64_t row, int lane, double* fine_slopes, float* slopes) {
  const float *edges = r.row_edges(row), *weights = r.row_weights(row);
  const float *coarse_edges = r.row_coarse_edges(row), *coarse = r.row_coarse(row);
  double excess = 0.0;
  for (int64_t i = lane; i < r.n; i += kWarp) {
    const Range range = overlapping(coarse_edges, r.m, edges[i], edges[i + 1]);
    double bound = 0.0;
    for (int64_t j = range.begin; j < range.end; ++j) bound += coarse[j];
    const double weight = weights[i];
    const Term t = term(weight, bound, weight);
    excess += t.excess;
    fine_slopes[i] = t.slope;
  }
  __syncwarp();
  for (int64_t j = lane; j < r.m; j += kWarp) {
    const Range range = overlapping(edges, r.n, coarse_edges[j], coarse_edges[j + 1]);
    double slope = 0.0;
    for (int64_t i = range.begin; i < range.end; ++i) slope += fine_slopes[i];
    slopes[j] = float(slope);
  }
  return excess;
}

template <bool is_blurred>
__global__ void __launch_bounds__(kRowThreads) row_kernel(
    const Rows r, double* scratch, int64_t size,  // of a row, in doubles
    float* __restrict__ excess,                   // [K]
    float* __restrict__ slopes) {                 // [K, m]
  const int lane = threadIdx.x % kWarp;
  const int64_t row = (blockIdx.x * int64_t(kRowThreads) + threadIdx.x) / kWarp;
  if (row >= r.k) return;  // the whole warp
  float* of_row = slopes + row * r.m;
  if (!r.counting[row]) {
    for (int64_t j = lane; j < r.m; j += kWarp) of_row[j] = 0.0f;
    if (lane == 0) excess[row] = 0.0f;
    return;
  }
  double* space = own_space(scratch, row, size);
  const double sum =
      total(is_blurred ? blurred_row(r, row, lane, space, of_row) : bounded_row(r, row, lane, space, of_row));
  if (lane == 0) excess[row] = float(sum);
}

void run(const Tensor& like, const Rows& r, float* excess, float* slopes) {
  const Launch launch(like);
  if (r.k == 0) return;
  const int64_t size = r.width > 0.0 ? 2 * (r.n + 1) : r.n;
  const int64_t bytes = size * int64_t(sizeof(double)) * (kRowThreads / kWarp);
  const bool fits = bytes <= kSharedBytes;
  Tensor scratch = empty(like, {fits ? 0 : r.k * size}, ScalarType::Double);
  double* space = fits ? nullptr : mutable_data<double>(scratch);
  auto* kernel = r.width > 0.0 ? &row_kernel<true> : &row_kernel<false>;
  kernel<<<blocks(r.k * kWarp, kRowThreads), kRowThreads, fits ? size_t(bytes) : 0, launch.stream>>>(
      r, space, size, excess, slopes);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) { m.impl("interlevel", TORCH_BOX(&interlevel<run>)); }

}  // namespace lightning_nerf::interlevel
