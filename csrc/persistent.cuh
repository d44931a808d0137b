// Persistent kernels: as many blocks as run at once, each of which keeps what it loads and takes its share of the work.
#pragma once
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

}  // namespace lightning_nerf
