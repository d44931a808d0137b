// Persistent kernels: as many blocks as run at once, each of which keeps what it loads and takes its share of the work.
#pragma once
#include <cuda_fp16.h>

#include <type_traits>

#include "cuda.cuh"

namespace lightning_nerf {

// Blocks of a persistent kernel: as many as run at once, and no more than there is work for.
template <typename Kernel>
unsigned int resident_blocks(Kernel kernel, int threads, size_t shared_bytes, int64_t wanted) {
  int device = 0, multiprocessors = 0, per_multiprocessor = 0;
  STD_CUDA_CHECK(cudaGetDevice(&device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  if (shared_bytes > 48 * 1024)
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
  STD_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads, shared_bytes));
  STD_TORCH_CHECK(per_multiprocessor > 0, "this GPU has too little shared memory for the fused kernel");
  const int64_t resident = int64_t(multiprocessors) * per_multiprocessor;
  return static_cast<unsigned int>(wanted < resident ? wanted : resident);
}

// The sum over blocks, in an order that depends on their number alone. A block of 8 x 32 threads sums 32 weights. Op: a type
// of the op's namespace, so that a profile tells whose sums these are.
template <typename Op>
__global__ void sum_partials_kernel(
    const float* __restrict__ partial,  // [n_partials, n_weights]
    int n_partials, int64_t n_weights,
    float* __restrict__ sums) {  // [n_weights]
  __shared__ float shared[8][32];
  const int64_t column = blockIdx.x * int64_t(32) + threadIdx.x;
  float sum = 0.0f;
  if (column < n_weights)
    for (int i = threadIdx.y; i < n_partials; i += 8) sum += partial[i * n_weights + column];
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= n_weights) return;
#pragma unroll
  for (int i = 1; i < 8; ++i) sum += shared[i][threadIdx.x];
  sums[column] = sum;
}

// What each of a persistent kernel's blocks has left in partial [blocks, n_weights], summed into sums [n_weights].
template <typename Op>
void sum_partials(const Tensor& partial, Tensor& sums, cudaStream_t stream) {
  const int64_t n_weights = sums.numel();
  sum_partials_kernel<Op><<<blocks(n_weights, 32), dim3(32, 8), 0, stream>>>(
      data<float>(partial), int(partial.size(0)), n_weights, mutable_data<float>(sums));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
constexpr ScalarType scalar_type() {
  return std::is_same_v<T, __half> ? ScalarType::Half : ScalarType::BFloat16;
}

}  // namespace lightning_nerf
