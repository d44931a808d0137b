// Arguments of the ray_budget op, the same for both launchers.
#pragma once
#include "ray_budget.cuh"
#include "stable.h"

namespace lightning_nerf::ray_budget {

// run updates n_rays; `like` says on which device.
template <void (*run)(const Tensor& like, const Arguments&)>
void ray_budget_(Tensor n_rays, const Tensor& n_samples, const Tensor& n_counted, double target, int64_t max_rays) {
  check_int(n_rays, "n_rays");
  check_int(n_samples, "n_samples");
  check(n_counted, ScalarType::Long, "n_counted");
  STD_TORCH_CHECK(n_rays.numel() == 1 && n_samples.numel() == 1 && n_counted.numel() == 1, "counts must be scalars");
  STD_TORCH_CHECK(max_rays >= 1 && max_rays < (int64_t(1) << 31), "max_rays must be in [1, 2^31)");
  run(n_rays, {mutable_data<int32_t>(n_rays), data<int32_t>(n_samples), data<int64_t>(n_counted), float(target),
               int32_t(max_rays)});
}

}  // namespace lightning_nerf::ray_budget
