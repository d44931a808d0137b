#include "cuda.cuh"
#include "random.h"

namespace lightning_nerf::random {
namespace {

__global__ void uniform_kernel(
    const int64_t* __restrict__ key,  // [3]
    uint32_t stream, int64_t n, int64_t k,
    float* __restrict__ out) {  // [n, k]
  const int64_t row = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (row < n) random_uniform_row(key, stream, row, k, out + row * k);
}

void uniform(const Tensor& like, const Arguments& a) {
  const Launch launch(like);
  if (a.n == 0) return;
  uniform_kernel<<<blocks(a.n), kThreads, 0, launch.stream>>>(a.key, a.stream, a.n, a.k, a.out);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) { m.impl("random_uniform", TORCH_BOX(&random_uniform<uniform>)); }

}  // namespace lightning_nerf::random
