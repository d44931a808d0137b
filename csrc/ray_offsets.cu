// A thread per ray. Neighboring rays take the same path down to the last few steps, so that a warp reads little more than the
// lines in which its rays begin. At 55 samples a ray that is a third of all indices; and no gap between indices costs more.
#include "cuda.cuh"
#include "ray_offsets.h"

namespace lightning_nerf::ray_offsets {
namespace {

template <typename Index>
__global__ void bisect_kernel(
    const Index* __restrict__ indices,  // [N]
    int32_t n, int64_t n_rays,
    int32_t* __restrict__ offsets) {  // [R + 1]
  const int64_t ray = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (ray <= n_rays) offsets[ray] = ray_begin(indices, n, ray);
}

void bisect(const Tensor& like, const Arguments& a) {
  const Launch launch(like);
  a.with_indices([&](const auto* indices) {
    bisect_kernel<<<blocks(a.n_rays + 1), kThreads, 0, launch.stream>>>(indices, a.n, a.n_rays, a.offsets);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) { m.impl("ray_offsets", TORCH_BOX(&ray_offsets<bisect>)); }

}  // namespace lightning_nerf::ray_offsets
