#include "cuda.cuh"
#include "random.cuh"

namespace lightning_nerf {
namespace {

__global__ void random_uniform_kernel(
    const int64_t* __restrict__ key,  // [3]
    uint32_t stream, int64_t n, int64_t k,
    float* __restrict__ out) {  // [n, k]
  const int64_t row = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (row < n) random_uniform_row(key, stream, row, k, out + row * k);
}

Tensor random_uniform(const Tensor& key, int64_t stream, int64_t n, int64_t k) {
  check(key, ScalarType::Long, "key");
  const Launch launch(key);
  Tensor out = empty(key, {n, k}, ScalarType::Float);
  if (n == 0) return out;
  random_uniform_kernel<<<blocks(n), kThreads, 0, launch.stream>>>(
      data<int64_t>(key), uint32_t(stream), n, k, mutable_data<float>(out));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("random_uniform", TORCH_BOX(&lightning_nerf::random_uniform));
}
