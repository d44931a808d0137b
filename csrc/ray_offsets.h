// Arguments and result of the ray_offsets op, the same for both launchers.
#pragma once
#include "ray_offsets.cuh"
#include "stable.h"

namespace lightning_nerf::ray_offsets {

struct Arguments {
  const void* indices;  // [N] int32, or int64 where `is_long`
  bool is_long;
  int32_t n;
  int64_t n_rays;

  int32_t* offsets;  // [R + 1]

  // body(indices) with their type.
  template <typename Body>
  void with_indices(const Body& body) const {
    if (is_long) body(static_cast<const int64_t*>(indices));
    else body(static_cast<const int32_t*>(indices));
  }
};

// run fills every entry of the result; `like` says on which device.
template <void (*run)(const Tensor& like, const Arguments&)>
Tensor ray_offsets(const Tensor& ray_indices, int64_t n_rays) {
  const bool is_long = ray_indices.scalar_type() == ScalarType::Long;
  check(ray_indices, is_long ? ScalarType::Long : ScalarType::Int, "ray_indices");
  STD_TORCH_CHECK(ray_indices.dim() == 1 && ray_indices.size(0) <= INT32_MAX, "ray_indices must be [N], N < 2^31");
  STD_TORCH_CHECK(n_rays >= 0 && n_rays < INT32_MAX, "n_rays must be in [0, 2^31 - 1)");
  Tensor offsets = empty(ray_indices, {n_rays + 1}, ScalarType::Int);
  run(ray_indices,
      {ray_indices.const_data_ptr(), is_long, int32_t(ray_indices.numel()), n_rays, mutable_data<int32_t>(offsets)});
  return offsets;
}

}  // namespace lightning_nerf::ray_offsets
