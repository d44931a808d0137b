// The contraction of an op, as its launcher is given it.
#pragma once
#include "contract.cuh"
#include "stable.h"

namespace lightning_nerf {

inline int checked_contraction(int64_t contraction) {
  STD_TORCH_CHECK(
      contraction >= kNoContraction && contraction <= kLinf, "contraction must be 0, 1 or 2, got ", contraction);
  return int(contraction);
}

}  // namespace lightning_nerf
