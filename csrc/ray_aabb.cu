#include "cuda.cuh"
#include "ray_aabb.h"

namespace lightning_nerf::ray_aabb {
namespace {

__global__ void intersect_kernel(
    const float* __restrict__ origins,     // [R, 3]
    const float* __restrict__ directions,  // [R, 3]
    const float* __restrict__ aabbs,       // [M, 2, 3]
    int64_t n_boxes, int64_t n,            // n = R * M
    float* __restrict__ t_mins,            // [R, M]
    float* __restrict__ t_maxs,            // [R, M]
    bool* __restrict__ hits) {             // [R, M]
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= n) return;
  const int64_t ray = i / n_boxes;
  const Span span = intersect(origins + 3 * ray, directions + 3 * ray, aabbs + 6 * (i % n_boxes));
  t_mins[i] = span.t_min;
  t_maxs[i] = span.t_max;
  hits[i] = span.hit;
}

void intersect_all(const Tensor& like, const Arguments& a) {
  const Launch launch(like);
  const int64_t n = a.n_rays * a.n_boxes;
  if (n == 0) return;
  intersect_kernel<<<blocks(n), kThreads, 0, launch.stream>>>(
      a.origins, a.directions, a.aabbs, a.n_boxes, n, a.t_mins, a.t_maxs, a.hits);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) { m.impl("ray_aabb", TORCH_BOX(&ray_aabb<intersect_all>)); }

}  // namespace lightning_nerf::ray_aabb
