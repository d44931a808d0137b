#include "cuda.cuh"
#include "ray_aabb.cuh"

namespace lightning_nerf {
namespace {

__global__ void ray_aabb_kernel(
    const float* __restrict__ origins,  // [R, 3]
    const float* __restrict__ directions,  // [R, 3]
    const float* __restrict__ aabbs,  // [M, 2, 3]
    int64_t n_boxes, int64_t n,  // n = R * M
    float* __restrict__ t_mins,  // [R, M]
    float* __restrict__ t_maxs,  // [R, M]
    bool* __restrict__ hits) {  // [R, M]
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= n) return;
  const int64_t ray = i / n_boxes;
  const Span span = ray_aabb_pair(origins + 3 * ray, directions + 3 * ray, aabbs + 6 * (i % n_boxes));
  t_mins[i] = span.t_min;
  t_maxs[i] = span.t_max;
  hits[i] = span.hit;
}

std::tuple<Tensor, Tensor, Tensor> ray_aabb(const Tensor& origins, const Tensor& directions, const Tensor& aabbs) {
  check_float(origins, "origins");
  check_float(directions, "directions");
  check_float(aabbs, "aabbs");
  const Launch launch(origins);
  const int64_t n_rays = origins.size(0), n_boxes = aabbs.size(0), n = n_rays * n_boxes;
  Tensor t_mins = empty(origins, {n_rays, n_boxes}, ScalarType::Float);
  Tensor t_maxs = empty(origins, {n_rays, n_boxes}, ScalarType::Float);
  Tensor hits = empty(origins, {n_rays, n_boxes}, ScalarType::Bool);
  if (n == 0) return {t_mins, t_maxs, hits};
  ray_aabb_kernel<<<blocks(n), kThreads, 0, launch.stream>>>(
      data<float>(origins), data<float>(directions), data<float>(aabbs), n_boxes, n,
      mutable_data<float>(t_mins), mutable_data<float>(t_maxs), mutable_data<bool>(hits));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {t_mins, t_maxs, hits};
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("ray_aabb", TORCH_BOX(&lightning_nerf::ray_aabb));
}
