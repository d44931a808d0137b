#include "stable.h"
#include "occupancy.cuh"

#include <algorithm>
#include <cstring>
#include <vector>

namespace lightning_nerf {
namespace {

constexpr int64_t kBlock = 4096;  // cells counted and listed together
constexpr int64_t kChunk = 4096;  // cells summed together for the mean: fixed, so that its bits are

int64_t count(const bool* cells, int64_t n) {
  int32_t total = 0;
  for (int64_t i = 0; i < n; ++i) total += cells[i];
  return total;
}

Tensor select(const Tensor& key, const Tensor& binaries, int64_t n_uniform, int64_t n_occupied, bool cover) {
  check(key, ScalarType::Long, "key");
  check(binaries, ScalarType::Bool, "binaries");
  const int64_t levels = binaries.size(0), per_level = n_uniform + n_occupied;
  const int64_t n = levels > 0 ? binaries.numel() / levels : 0;  // cells per level
  STD_TORCH_CHECK(n > 0 && binaries.numel() < (int64_t(1) << 31), "binaries must have 1 to 2^31 - 1 cells");
  Tensor cells = empty(key, {levels * per_level}, ScalarType::Int);
  const int64_t* key_data = data<int64_t>(key);
  const bool* grid = data<bool>(binaries);
  int32_t* out = mutable_data<int32_t>(cells);

  // The occupied cells of all levels, listed in order; then a draw is one look-up.
  const int64_t n_cells = levels * n, n_blocks = (n_cells + kBlock - 1) / kBlock;
  std::vector<int64_t> starts(size_t(n_blocks) + 1), level_starts(size_t(levels) + 1);
  parallel_for(n_blocks, 4, [&](int64_t block) {
    starts[size_t(block) + 1] = count(grid + block * kBlock, std::min(kBlock, n_cells - block * kBlock));
  });
  for (int64_t block = 0; block < n_blocks; ++block) starts[size_t(block) + 1] += starts[size_t(block)];
  std::vector<int32_t> occupied(static_cast<size_t>(starts.back()));
  parallel_for(n_blocks, 4, [&](int64_t block) {
    int32_t* next = occupied.data() + starts[size_t(block)];
    const int64_t end = std::min(n_cells, (block + 1) * kBlock);
    for (int64_t cell = block * kBlock; cell < end; ++cell)
      if (grid[cell]) *next++ = int32_t(cell);
  });
  for (int64_t level = 0; level <= levels; ++level)
    level_starts[size_t(level)] = std::lower_bound(occupied.begin(), occupied.end(), level * n) - occupied.begin();

  parallel_for(levels * per_level, 4096, [&](int64_t row) {
    const int64_t level = row / per_level, start = level_starts[size_t(level)];
    const int64_t total = level_starts[size_t(level) + 1] - start;
    const uint32_t draw = cell_draw(key_data, row);
    const int64_t i = row % per_level - n_uniform;
    out[row] = i < 0 || total == 0 ? int32_t(level * n + below(draw, n))
                                   : occupied[size_t(start + occupied_rank(cover, draw, i, n_occupied, total))];
  });
  return cells;
}

Tensor occupancy_select(const Tensor& key, const Tensor& binaries, int64_t n_uniform, int64_t n_occupied) {
  return select(key, binaries, n_uniform, n_occupied, false);
}

Tensor occupancy_cover(const Tensor& key, const Tensor& binaries, int64_t n_uniform, int64_t n_occupied) {
  return select(key, binaries, n_uniform, n_occupied, true);
}

Tensor occupancy_points(
    const Tensor& key, const Tensor& cells, const Tensor& aabb, int64_t x, int64_t y, int64_t z) {
  check(key, ScalarType::Long, "key");
  check_int(cells, "cells");
  check_float(aabb, "aabb");
  const int64_t n = cells.numel();
  Tensor points = empty(key, {n, 3}, ScalarType::Float);
  const int64_t* key_data = data<int64_t>(key);
  const int32_t* cells_data = data<int32_t>(cells);
  const float* aabb_data = data<float>(aabb);
  float* out = mutable_data<float>(points);
  const GridShape shape = {int32_t(x), int32_t(y), int32_t(z)};
  parallel_for(n, 4096, [&](int64_t row) {
    cell_point(key_data, row, cells_data[row], shape, aabb_data, out + 3 * row);
  });
  return points;
}

// Non-negative floats order like their bits, read as int32; -1 has the sign bit and is below them all.
int32_t bits(float value) {
  int32_t out;
  std::memcpy(&out, &value, 4);
  return out;
}

Tensor occupancy_newest(const Tensor& cells, const Tensor& values, int64_t n) {
  check_int(cells, "cells");
  check_float(values, "values");
  STD_TORCH_CHECK(cells.numel() == values.numel(), "cells and values must have one length");
  Tensor newest = empty(values, {n}, ScalarType::Float);
  const int32_t* cells_data = data<int32_t>(cells);
  const float* values_data = data<float>(values);
  int32_t* out = reinterpret_cast<int32_t*>(mutable_data<float>(newest));
  std::fill_n(out, n, bits(-1.0f));
  // Threads may meet in a cell: an atomic maximum doesn't depend on who comes first.
  parallel_for(cells.numel(), 16384, [&](int64_t row) {
    const int64_t cell = cells_data[row];
    const float value = values_data[row];
    if (cell < 0 || cell >= n || !usable(value)) return;
    const int32_t wanted = bits(value == 0.0f ? 0.0f : value);  // no -0
    int32_t found = __atomic_load_n(out + cell, __ATOMIC_RELAXED);
    while (found < wanted && !__atomic_compare_exchange_n(
        out + cell, &found, wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  });
  return newest;
}

void occupancy_update_(
    Tensor occs, Tensor binaries, Tensor mean, const Tensor& newest, double decay, double threshold) {
  check_float(occs, "occs");
  check(binaries, ScalarType::Bool, "binaries");
  check_float(mean, "mean");
  check_float(newest, "newest");
  const int64_t n = occs.numel();
  STD_TORCH_CHECK(binaries.numel() == n && newest.numel() == n && mean.numel() == 1,
                  "occs, binaries and newest must have one size, mean one element");
  float* occ = mutable_data<float>(occs);
  bool* binary = mutable_data<bool>(binaries);
  const float* newest_data = data<float>(newest);
  const float decay_f = float(decay);

  const int64_t n_chunks = (n + kChunk - 1) / kChunk;
  std::vector<double> sums(static_cast<size_t>(n_chunks));
  std::vector<int64_t> counts(static_cast<size_t>(n_chunks));
  parallel_for(n_chunks, 4, [&](int64_t chunk) {
    constexpr int kLanes = 8;  // sums side by side, for the vector unit
    double sum[kLanes] = {};
    int32_t seen[kLanes] = {};
    const auto visit = [&](int64_t i, int lane) {
      const float value = decayed_max(occ[i], newest_data[i], decay_f);
      occ[i] = value;
      sum[lane] += value >= 0.0f ? double(value) : 0.0;
      seen[lane] += value >= 0.0f;
    };
    const int64_t end = std::min(n, (chunk + 1) * kChunk);
    int64_t i = chunk * kChunk;
    for (; i + kLanes <= end; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) visit(i + lane, lane);
    for (; i < end; ++i) visit(i, 0);
    for (int lane = 0; lane < kLanes; ++lane) {
      sums[size_t(chunk)] += sum[lane];
      counts[size_t(chunk)] += seen[lane];
    }
  });
  double sum = 0.0;
  int64_t visible = 0;
  for (int64_t chunk = 0; chunk < n_chunks; ++chunk) {
    sum += sums[size_t(chunk)];
    visible += counts[size_t(chunk)];
  }
  const float average = visible > 0 ? float(sum / double(visible)) : 0.0f;
  *mutable_data<float>(mean) = average;
  const float floor = std::min(average, float(threshold));
  parallel_for(n_chunks, 8, [&](int64_t chunk) {
    const int64_t end = std::min(n, (chunk + 1) * kChunk);
    for (int64_t i = chunk * kChunk; i < end; ++i) binary[i] = is_occupied(occ[i], floor);
  });
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("occupancy_select(Tensor key, Tensor binaries, int n_uniform, int n_occupied) -> Tensor");
  m.def("occupancy_cover(Tensor key, Tensor binaries, int n_uniform, int n_occupied) -> Tensor");
  m.def("occupancy_points(Tensor key, Tensor cells, Tensor aabb, int x, int y, int z) -> Tensor");
  m.def("occupancy_newest(Tensor cells, Tensor values, int n) -> Tensor");
  m.def("occupancy_update_(Tensor(a!) occs, Tensor(b!) binaries, Tensor(c!) mean, Tensor newest, float decay, "
        "float threshold) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("occupancy_select", TORCH_BOX(&lightning_nerf::occupancy_select));
  m.impl("occupancy_cover", TORCH_BOX(&lightning_nerf::occupancy_cover));
  m.impl("occupancy_points", TORCH_BOX(&lightning_nerf::occupancy_points));
  m.impl("occupancy_newest", TORCH_BOX(&lightning_nerf::occupancy_newest));
  m.impl("occupancy_update_", TORCH_BOX(&lightning_nerf::occupancy_update_));
}
