// Arguments and results of the occupancy ops, the same for both launchers: run fills every entry of the results, and `like`
// says on which device.
#pragma once
#include "occupancy.cuh"
#include "stable.h"

namespace lightning_nerf::occupancy {

// Which cells to evaluate: of each level n_uniform among all of its cells and n_occupied among those that are occupied.
struct Selection {
  const int64_t* key;    // [3]
  const bool* binaries;  // [levels, n]
  int64_t levels, n;     // n: cells per level
  int64_t n_uniform, n_occupied;
  bool cover;  // the occupied cells in turn, where there are enough draws

  int32_t* cells;  // [levels, n_uniform + n_occupied]

  int64_t per_level() const { return n_uniform + n_occupied; }
};

template <void (*run)(const Tensor& like, const Selection&)>
Tensor select(const Tensor& key, const Tensor& binaries, int64_t n_uniform, int64_t n_occupied, bool cover) {
  check(key, ScalarType::Long, "key");
  check(binaries, ScalarType::Bool, "binaries");
  const int64_t levels = binaries.size(0), n = levels > 0 ? binaries.numel() / levels : 0;
  STD_TORCH_CHECK(n > 0 && binaries.numel() < (int64_t(1) << 31), "binaries must have 1 to 2^31 - 1 cells");
  Tensor cells = empty(key, {levels * (n_uniform + n_occupied)}, ScalarType::Int);
  run(binaries,
      {data<int64_t>(key), data<bool>(binaries), levels, n, n_uniform, n_occupied, cover, mutable_data<int32_t>(cells)});
  return cells;
}

template <void (*run)(const Tensor& like, const Selection&)>
Tensor occupancy_select(const Tensor& key, const Tensor& binaries, int64_t n_uniform, int64_t n_occupied) {
  return select<run>(key, binaries, n_uniform, n_occupied, false);
}

template <void (*run)(const Tensor& like, const Selection&)>
Tensor occupancy_cover(const Tensor& key, const Tensor& binaries, int64_t n_uniform, int64_t n_occupied) {
  return select<run>(key, binaries, n_uniform, n_occupied, true);
}

// A random point of each cell.
struct Points {
  const int64_t* key;    // [3]
  const int32_t* cells;  // [n]
  const float* aabb;     // [2, 3]
  GridShape shape;
  int64_t n;

  float* points;  // [n, 3]
};

template <void (*run)(const Tensor& like, const Points&)>
Tensor occupancy_points(const Tensor& key, const Tensor& cells, const Tensor& aabb, int64_t x, int64_t y, int64_t z) {
  check(key, ScalarType::Long, "key");
  check_int(cells, "cells");
  check_float(aabb, "aabb");
  const int64_t n = cells.numel();
  Tensor points = empty(key, {n, 3}, ScalarType::Float);
  run(cells, {data<int64_t>(key),
              data<int32_t>(cells),
              data<float>(aabb),
              {int32_t(x), int32_t(y), int32_t(z)},
              n,
              mutable_data<float>(points)});
  return points;
}

// The largest value that each cell was given; -1 where there is none.
struct Newest {
  const int32_t* cells;  // [n_rows]
  const float* values;   // [n_rows]
  int64_t n_rows, n;

  float* newest;  // [n]
};

template <void (*run)(const Tensor& like, const Newest&)>
Tensor occupancy_newest(const Tensor& cells, const Tensor& values, int64_t n) {
  check_int(cells, "cells");
  check_float(values, "values");
  STD_TORCH_CHECK(cells.numel() == values.numel(), "cells and values must have one length");
  Tensor newest = empty(values, {n}, ScalarType::Float);
  run(values, {data<int32_t>(cells), data<float>(values), cells.numel(), n, mutable_data<float>(newest)});
  return newest;
}

struct Update {
  const float* newest;  // [n]
  int64_t n;
  float decay, threshold;

  float* occs;     // [n], in place
  bool* binaries;  // [n]
  float* mean;     // []
};

template <void (*run)(const Tensor& like, const Update&)>
void occupancy_update_(Tensor occs, Tensor binaries, Tensor mean, const Tensor& newest, double decay, double threshold) {
  check_float(occs, "occs");
  check(binaries, ScalarType::Bool, "binaries");
  check_float(mean, "mean");
  check_float(newest, "newest");
  const int64_t n = occs.numel();
  STD_TORCH_CHECK(
      binaries.numel() == n && newest.numel() == n && mean.numel() == 1,
      "occs, binaries and newest must have one size, mean one element");
  run(occs, {data<float>(newest), n, float(decay), float(threshold), mutable_data<float>(occs),
             mutable_data<bool>(binaries), mutable_data<float>(mean)});
}

}  // namespace lightning_nerf::occupancy
