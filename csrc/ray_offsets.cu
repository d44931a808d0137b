// A thread per ray. Neighbouring rays take the same path down to the last few steps, so that a warp reads little more than the
// lines in which its rays begin. At 55 samples a ray that is a third of all indices; and no gap between indices costs more.
#include "cuda.cuh"
#include "ray_offsets.cuh"
#include "ray_offsets.h"

namespace lightning_nerf {
namespace {

template <typename Index>
__global__ void ray_offsets_kernel(
    const Index* __restrict__ indices,  // [N]
    int32_t n, int64_t n_rays,
    int32_t* __restrict__ offsets) {  // [R + 1]
  const int64_t ray = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (ray <= n_rays) offsets[ray] = ray_begin(indices, n, ray);
}

Tensor ray_offsets(const Tensor& ray_indices, int64_t n_rays) {
  const Launch launch(ray_indices);
  const int32_t n = int32_t(ray_indices.numel());
  return make_ray_offsets(ray_indices, n_rays, [&](const auto* indices, int32_t* offsets) {
    ray_offsets_kernel<<<blocks(n_rays + 1), kThreads, 0, launch.stream>>>(indices, n, n_rays, offsets);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) { m.impl("ray_offsets", TORCH_BOX(&lightning_nerf::ray_offsets)); }
