#include "ray_offsets.cuh"
#include "ray_offsets.h"

namespace lightning_nerf {
namespace {

constexpr int64_t kGrain = 1024;  // rays

Tensor ray_offsets(const Tensor& ray_indices, int64_t n_rays) {
  const int32_t n = int32_t(ray_indices.numel());
  return make_ray_offsets(ray_indices, n_rays, [&](const auto* indices, int32_t* offsets) {
    parallel_for(n_rays + 1, kGrain, [&](int64_t ray) { offsets[ray] = ray_begin(indices, n, ray); });
  });
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) { m.def("ray_offsets(Tensor ray_indices, int n_rays) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) { m.impl("ray_offsets", TORCH_BOX(&lightning_nerf::ray_offsets)); }
