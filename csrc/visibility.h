// Argument checks and outputs of the visibility ops, for both launchers.
#pragma once
#include "stable.h"
#include "visibility.cuh"

namespace lightning_nerf {

inline void check_visibility(
    const Tensor& densities, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets,
    const Tensor& alpha_thre) {
  check_float(densities, "densities");
  check_float(t_starts, "t_starts");
  check_float(t_ends, "t_ends");
  check_int(offsets, "offsets");
  check_float(alpha_thre, "alpha_thre");
  STD_TORCH_CHECK(alpha_thre.numel() == 1, "alpha_thre must hold one number");
}

using Survivors = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // t_starts, t_ends, ray_indices, sources

inline Survivors empty_survivors(const Tensor& like, int64_t n) {
  return {empty(like, {n}, ScalarType::Float), empty(like, {n}, ScalarType::Float), empty(like, {n}, ScalarType::Int),
          empty(like, {n}, ScalarType::Int)};
}

}  // namespace lightning_nerf
