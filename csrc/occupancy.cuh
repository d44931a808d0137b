// Per-cell maths of the occupancy grid: which cell a draw picks, where in it a point lies, how its value decays.
//
// A cell's index counts over all levels: ((level * X + x) * Y + y) * Z + z. Level l covers the box scaled by 2^l.
#pragma once
#include "random.cuh"

namespace lightning_nerf::occupancy {

// The streams of lightning_nerf/ops/random.py.
constexpr uint32_t kStreamCells = 3;
constexpr uint32_t kStreamCellPoints = 4;

// The 32 bits behind row `row` of stream "cells": those that random_uniform shows of its first two words.
LN_HD uint32_t cell_draw(const int64_t* key, int64_t row) {
  const Philox random = philox(uint32_t(row), 0u, uint32_t(key[2]), kStreamCells, uint32_t(key[0]), uint32_t(key[1]));
  return (random.word[0] & 0xFFFFFF00u) | (random.word[1] >> 24);
}

// Uniform in [0, n), 1 <= n < 2^31, with a bias below n / 2^32.
LN_HD int64_t below(uint32_t draw, int64_t n) { return int64_t((uint64_t(draw) * uint64_t(n)) >> 32); }

// The occupied cell that the i-th of n draws takes among a level's `total`. To cover: all in turn, where there are enough.
LN_HD int64_t occupied_rank(bool cover, uint32_t draw, int64_t i, int64_t n, int64_t total) {
  return cover && total <= n ? i % total : below(draw, total);
}

struct GridShape {
  int32_t x, y, z;  // all levels together have fewer than 2^31 cells
};

// A uniform point of cell `cell`, drawn with row `row` of stream "cell points".
LN_HD void cell_point(
    const int64_t* key,  // [3]
    int64_t row, int32_t cell, GridShape shape,
    const float* aabb,  // [2, 3]
    float* point) {     // [3]
  float u[3];
  random_uniform_row(key, kStreamCellPoints, row, 3, u);
  const int32_t size[3] = {shape.x, shape.y, shape.z};
  const int32_t column = cell / shape.z, slab = column / shape.y, level = slab / shape.x;
  const int32_t index[3] = {slab - level * shape.x, column - slab * shape.y, cell - column * shape.z};
  const float scale = float(int64_t(1) << level);
  for (int d = 0; d < 3; ++d) {
    const float center = (aabb[d] + aabb[3 + d]) * 0.5f;
    const float half = (aabb[3 + d] - aabb[d]) * 0.5f * scale;
    point[d] = center + half * (2.0f * ((float(index[d]) + u[d]) / float(size[d])) - 1.0f);
  }
}

// A new value counts if it is finite and not negative. (NaN fails both comparisons.)
LN_HD bool usable(float value) { return value >= 0.0f && value <= 3.402823466e38f; }

// `newest` < 0: the cell was not evaluated. `occ` < 0 (or NaN): no camera sees the cell.
LN_HD float decayed_max(float occ, float newest, float decay) {
  if (!(occ >= 0.0f) || !(newest >= 0.0f)) return occ;
  const float old = occ * decay;
  return old > newest ? old : newest;
}

// `floor` is min(mean, threshold). Not below the floor, rather than above it: a field of constant density fills the grid.
LN_HD bool is_occupied(float occ, float floor) { return occ > 0.0f && occ >= floor; }

}  // namespace lightning_nerf::occupancy
