// Arguments and result of the ray_offsets op, the same for both launchers.
#pragma once
#include "stable.h"

namespace lightning_nerf {

// run<Index> fills offsets [R + 1].
template <typename Run>
Tensor make_ray_offsets(const Tensor& ray_indices, int64_t n_rays, const Run& run) {
  const bool is_long = ray_indices.scalar_type() == ScalarType::Long;
  check(ray_indices, is_long ? ScalarType::Long : ScalarType::Int, "ray_indices");
  STD_TORCH_CHECK(ray_indices.dim() == 1 && ray_indices.size(0) <= INT32_MAX, "ray_indices must be [N], N < 2^31");
  STD_TORCH_CHECK(n_rays >= 0 && n_rays < INT32_MAX, "n_rays must be in [0, 2^31 - 1)");
  Tensor offsets = empty(ray_indices, {n_rays + 1}, ScalarType::Int);
  if (is_long) run(data<int64_t>(ray_indices), mutable_data<int32_t>(offsets));
  else run(data<int32_t>(ray_indices), mutable_data<int32_t>(offsets));
  return offsets;
}

}  // namespace lightning_nerf
