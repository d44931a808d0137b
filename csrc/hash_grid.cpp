#include "stable.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "hash_grid.cuh"

// The loops over a block are also compiled for AVX2 and chosen at load time. Without fused multiply-add, so the bits are the
// same on every machine.
#if defined(__x86_64__) && defined(__gnu_linux__)
#define LN_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define LN_CLONES
#endif

namespace lightning_nerf {
namespace {

constexpr int kBlock = 128;    // samples whose table rows are computed ahead of the gathers
constexpr int kChunk = 4096;   // samples that pass through all levels together: one level's table and these stay in L2

// Positions of a block and, for one level, the table rows and weights of its corners; samples are the innermost index.
template <int D>
struct Block {
  static constexpr int kCorners = 1 << D;
  int n;
  float x[D][kBlock];
  uint32_t row[kCorners][kBlock];
  float weight[kCorners][kBlock];
};

template <int D>
LN_CLONES void load_positions(const float* positions, Block<D>& block) {  // positions [block.n, D]
  for (int d = 0; d < D; ++d) {
    for (int i = 0; i < block.n; ++i) block.x[d][i] = clamp_to_unit(positions[i * D + d]);
    for (int i = block.n; i < kBlock; ++i) block.x[d][i] = 0.0f;
  }
}

template <int D, bool Hashed>
LN_CLONES void locate_block(const Level& level, Block<D>& block) {
  for (int i = 0; i < kBlock; ++i) {
    float x[D];
    for (int d = 0; d < D; ++d) x[d] = block.x[d][i];
    const Cell<D> cell = locate<D>(x, level);
    for (int c = 0; c < Block<D>::kCorners; ++c) {
      block.row[c][i] = corner_row<D, Hashed>(cell, level, c);
      block.weight[c][i] = corner_weight<D>(cell, c);
    }
  }
}
}  // namespace
}  // namespace lightning_nerf
