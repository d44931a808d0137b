#include "occupancy.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace lightning_nerf::occupancy {
namespace {

constexpr int64_t kBlock = 4096;  // cells counted and listed together
constexpr int64_t kGrain = 4096;  // draws or points
constexpr int64_t kChunk = 4096;  // cells summed together for the mean: fixed, so that its bits are

int64_t count(const bool* cells, int64_t n) {
  int32_t total = 0;
  for (int64_t i = 0; i < n; ++i) total += cells[i];
  return total;
}

void select_cells(const Tensor&, const Selection& s) {
  const int64_t per_level = s.per_level();
  // The occupied cells of all levels, listed in order; then a draw is one look-up.
  const int64_t n_cells = s.levels * s.n, n_blocks = (n_cells + kBlock - 1) / kBlock;
  std::vector<int64_t> starts(size_t(n_blocks) + 1), level_starts(size_t(s.levels) + 1);
  parallel_for(n_blocks, 4, [&](int64_t block) {
    starts[size_t(block) + 1] = count(s.binaries + block * kBlock, std::min(kBlock, n_cells - block * kBlock));
  });
  for (int64_t block = 0; block < n_blocks; ++block) starts[size_t(block) + 1] += starts[size_t(block)];
  std::vector<int32_t> occupied(static_cast<size_t>(starts.back()));
  parallel_for(n_blocks, 4, [&](int64_t block) {
    int32_t* next = occupied.data() + starts[size_t(block)];
    const int64_t end = std::min(n_cells, (block + 1) * kBlock);
    for (int64_t cell = block * kBlock; cell < end; ++cell)
      if (s.binaries[cell]) *next++ = int32_t(cell);
  });
  for (int64_t level = 0; level <= s.levels; ++level)
    level_starts[size_t(level)] = std::lower_bound(occupied.begin(), occupied.end(), level * s.n) - occupied.begin();

  parallel_for(s.levels * per_level, kGrain, [&](int64_t row) {
    const int64_t level = row / per_level, start = level_starts[size_t(level)];
    const int64_t total = level_starts[size_t(level) + 1] - start;
    const uint32_t draw = cell_draw(s.key, row);
    const int64_t i = row % per_level - s.n_uniform;
    s.cells[row] = i < 0 || total == 0 ? int32_t(level * s.n + below(draw, s.n))
                                       : occupied[size_t(start + occupied_rank(s.cover, draw, i, s.n_occupied, total))];
  });
}

void draw_points(const Tensor&, const Points& p) {
  parallel_for(p.n, kGrain, [&](int64_t row) {
    cell_point(p.key, row, p.cells[row], p.shape, p.aabb, p.points + 3 * row);
  });
}

// Non-negative floats order like their bits, read as int32; -1 has the sign bit and is below them all.
int32_t bits(float value) {
  int32_t out;
  std::memcpy(&out, &value, 4);
  return out;
}

void find_newest(const Tensor&, const Newest& v) {
  int32_t* out = reinterpret_cast<int32_t*>(v.newest);
  std::fill_n(out, v.n, bits(-1.0f));
  // Threads may meet in a cell: an atomic maximum doesn't depend on who comes first.
  parallel_for(v.n_rows, 16384, [&](int64_t row) {
    const int64_t cell = v.cells[row];
    const float value = v.values[row];
    if (cell < 0 || cell >= v.n || !usable(value)) return;
    const int32_t wanted = bits(value == 0.0f ? 0.0f : value);  // no -0
    int32_t found = __atomic_load_n(out + cell, __ATOMIC_RELAXED);
    while (found < wanted &&
           !__atomic_compare_exchange_n(out + cell, &found, wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  });
}

void update(const Tensor&, const Update& u) {
  const int64_t n_chunks = (u.n + kChunk - 1) / kChunk;
  std::vector<double> sums(static_cast<size_t>(n_chunks));
  std::vector<int64_t> counts(static_cast<size_t>(n_chunks));
  parallel_for(n_chunks, 4, [&](int64_t chunk) {
    constexpr int kLanes = 8;  // sums side by side, for the vector unit
    const Update own = u;      // a copy: the compiler need not fear that a store changes it
    double sum[kLanes] = {};
    int32_t seen[kLanes] = {};
    const auto visit = [&](int64_t i, int lane) {
      const float value = decayed_max(own.occs[i], own.newest[i], own.decay);
      own.occs[i] = value;
      sum[lane] += value >= 0.0f ? double(value) : 0.0;
      seen[lane] += value >= 0.0f;
    };
    const int64_t end = std::min(u.n, (chunk + 1) * kChunk);
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
  *u.mean = average;
  const float floor = std::min(average, u.threshold);
  parallel_for(n_chunks, 8, [&](int64_t chunk) {
    const int64_t end = std::min(u.n, (chunk + 1) * kChunk);
    for (int64_t i = chunk * kChunk; i < end; ++i) u.binaries[i] = is_occupied(u.occs[i], floor);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("occupancy_select(Tensor key, Tensor binaries, int n_uniform, int n_occupied) -> Tensor");
  m.def("occupancy_cover(Tensor key, Tensor binaries, int n_uniform, int n_occupied) -> Tensor");
  m.def("occupancy_points(Tensor key, Tensor cells, Tensor aabb, int x, int y, int z) -> Tensor");
  m.def("occupancy_newest(Tensor cells, Tensor values, int n) -> Tensor");
  m.def(
      "occupancy_update_(Tensor(a!) occs, Tensor(b!) binaries, Tensor(c!) mean, Tensor newest, float decay, "
      "float threshold) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("occupancy_select", TORCH_BOX(&occupancy_select<select_cells>));
  m.impl("occupancy_cover", TORCH_BOX(&occupancy_cover<select_cells>));
  m.impl("occupancy_points", TORCH_BOX(&occupancy_points<draw_points>));
  m.impl("occupancy_newest", TORCH_BOX(&occupancy_newest<find_newest>));
  m.impl("occupancy_update_", TORCH_BOX(&occupancy_update_<update>));
}

}  // namespace lightning_nerf::occupancy
