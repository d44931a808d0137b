// All of space in the unit cube: the maps of lightning_nerf/scene_box.py, which names their source.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf {

enum Contraction : int { kNoContraction = 0, kL2 = 1, kLinf = 2 };  // as in CONTRACTIONS of scene_box.py

constexpr float kFarthest = 1e15f;  // half-sides; beyond it a square overflows

// x: coordinates in which the scene's box is the unit cube; replaced by those in which all of space is. NaN stays NaN.
LN_HD void contract_unit(float (&x)[3], int contraction) {
  float y[3];
  for (int a = 0; a < 3; ++a) {
    const float half_sides = 2.0f * x[a] - 1.0f;
    y[a] = half_sides > kFarthest ? kFarthest : half_sides < -kFarthest ? -kFarthest : half_sides;
  }
  const float a = std::fabs(y[0]), b = std::fabs(y[1]), c = std::fabs(y[2]);
  const float norm =
      contraction == kL2 ? std::sqrt(y[0] * y[0] + y[1] * y[1] + y[2] * y[2]) : std::fmax(a, std::fmax(b, c));
  const float scale = norm > 1.0f ? (2.0f - 1.0f / norm) / norm : 1.0f;
  for (int i = 0; i < 3; ++i) x[i] = 0.25f * (y[i] * scale) + 0.5f;
}

}  // namespace lightning_nerf
