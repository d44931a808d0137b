#include "cuda.cuh"

#include <cub/device/device_scan.cuh>
#include <thrust/iterator/transform_iterator.h>

namespace lightning_nerf {
namespace {

// A saturated count must not fit in any capacity, which is at most INT32_MAX. Sums of up to 2^31 of these fit in int64.
struct Widen {
  __host__ __device__ int64_t operator()(int32_t count) const {
    return count == INT32_MAX ? int64_t(1) << 32 : int64_t(count);
  }
};

__global__ void pack_offsets_kernel(
    const int64_t* __restrict__ sums,  // [R] inclusive
    int64_t n_rays, int64_t capacity,
    int32_t* __restrict__ offsets,  // [R + 1]
    bool* __restrict__ kept) {  // [R]
  const int64_t ray = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (ray == 0) offsets[0] = 0;
  if (ray >= n_rays) return;
  const bool keep = sums[ray] <= capacity;
  int64_t total = keep ? sums[ray] : 0;
  if (!keep) {  // the sum over the rays that fit: all threads that come here take the same path
    int64_t low = 0, high = ray;  // sums[high] > capacity
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (sums[middle] <= capacity) low = middle + 1;
      else high = middle;
    }
    if (low > 0) total = sums[low - 1];
  }
  offsets[ray + 1] = int32_t(total);
  kept[ray] = keep;
}

std::tuple<Tensor, Tensor> pack_offsets(const Tensor& counts, int64_t capacity) {
  check_int(counts, "counts");
  const Launch launch(counts);
  const int64_t n_rays = counts.size(0);
  Tensor offsets = empty(counts, {n_rays + 1}, ScalarType::Int);
  Tensor kept = empty(counts, {n_rays}, ScalarType::Bool);
  Tensor sums = empty(counts, {n_rays}, ScalarType::Long);
  if (n_rays > 0) {
    const auto wide = thrust::make_transform_iterator(data<int32_t>(counts), Widen());
    int64_t* sums_data = mutable_data<int64_t>(sums);
    size_t bytes = 0;
    STD_CUDA_CHECK(cub::DeviceScan::InclusiveSum(nullptr, bytes, wide, sums_data, n_rays, launch.stream));
    Tensor scratch = empty(counts, {int64_t(bytes)}, ScalarType::Byte);
    STD_CUDA_CHECK(cub::DeviceScan::InclusiveSum(
        mutable_data<uint8_t>(scratch), bytes, wide, sums_data, n_rays, launch.stream));
  }
  pack_offsets_kernel<<<blocks(n_rays + 1), kThreads, 0, launch.stream>>>(
      data<int64_t>(sums), n_rays, capacity, mutable_data<int32_t>(offsets), mutable_data<bool>(kept));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {offsets, kept};
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("pack_offsets", TORCH_BOX(&lightning_nerf::pack_offsets));
}
