// Arguments and results of the lens_rays op, the same for both launchers.
#pragma once
#include "lens_rays.cuh"
#include "stable.h"

namespace lightning_nerf::lens_rays {

// Rows of a tensor that has one for each of n rays, or one for all: 0 is the stride then.
inline int64_t stride(const Tensor& t, int64_t n, int64_t row, const char* name) {
  STD_TORCH_CHECK(t.dim() > 0 && t.numel() == t.size(0) * row, name, " has the wrong shape");
  STD_TORCH_CHECK(t.size(0) == n || t.size(0) == 1, name, " must have a row for each ray, or one");
  return t.size(0) == 1 ? 0 : row;
}

template <void (*run)(const Tensor& like, const Rays&, const Out&, int64_t n)>
std::tuple<Tensor, Tensor, Tensor> lens_rays(
    const Tensor& c2w, const Tensor& intrinsics, const Tensor& lens_model, const Tensor& lens, const Tensor& limit,
    const Tensor& x, const Tensor& y) {
  check_float(c2w, "c2w");
  check_float(intrinsics, "intrinsics");
  check(lens_model, ScalarType::Long, "lens_model");
  check_float(lens, "lens");
  check_float(limit, "limit");
  check_float(x, "x");
  check_float(y, "y");
  const int64_t n = x.numel();
  STD_TORCH_CHECK(x.dim() == 1 && y.dim() == 1 && y.numel() == n, "x and y must be [R]");
  const Rays rays{
      data<float>(c2w),
      data<float>(intrinsics),
      data<int64_t>(lens_model),
      data<float>(lens),
      data<float>(limit),
      data<float>(x),
      data<float>(y),
      stride(c2w, n, 12, "c2w"),
      stride(intrinsics, n, 4, "intrinsics"),
      stride(lens_model, n, 1, "lens_model"),
      stride(lens, n, 8, "lens"),
      stride(limit, n, 1, "limit")};
  Tensor directions = empty(x, {n, 3}, ScalarType::Float);
  Tensor footprint = empty(x, {n}, ScalarType::Float);
  Tensor valid = empty(x, {n}, ScalarType::Bool);
  run(x, rays, {mutable_data<float>(directions), mutable_data<float>(footprint), mutable_data<bool>(valid)}, n);
  return {directions, footprint, valid};
}

}  // namespace lightning_nerf::lens_rays
