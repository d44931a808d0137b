#include "march.h"

#include <algorithm>
#include <cstring>

namespace lightning_nerf::march {
namespace {

constexpr int64_t kGrain = 16;  // rays

// The grid as bits: rays visit cells all over it, and in the caches there is room for eight times as many. Grids
// of many bins stay bytes: a call visits a small part of them.
Tensor pack_bits(const Tensor& like, Arguments& m) {
  if (m.bins) return empty(like, {0}, ScalarType::Byte);
  const int64_t n = int64_t(m.levels) * m.resolution[0] * m.resolution[1] * m.resolution[2];
  Tensor bits = empty(like, {(n + 7) / 8}, ScalarType::Byte);
  const uint8_t* cells = m.occupancy;
  uint8_t* bytes = mutable_data<uint8_t>(bits);
  parallel_for((n + 7) / 8, 1 << 14, [&](int64_t i) {
    uint64_t eight = 0;
    std::memcpy(&eight, cells + 8 * i, std::min<int64_t>(8, n - 8 * i));
    bytes[i] = uint8_t(eight * 0x0102040810204080u >> 56);  // bit k is byte k, each 0 or 1; little-endian
  });
  m.occupancy = bytes;
  m.packing = 3;
  return bits;
}

struct Cpu {
  static constexpr pack::Run* run_pack = &pack::run_on_cpu;

  // The plan is for CUDA alone, where a march is not walked twice: here it is empty.
  static int64_t plan_size(int64_t) { return 0; }

  static void count(const Tensor& like, const Arguments& arguments, int32_t* counts, int32_t*) {
    Arguments m = arguments;
    const Tensor bits = pack_bits(like, m);
    const Grid grid(m);
    parallel_for_rays(m.n_rays, kGrain, [&](int64_t r) {
      CountSamples samples;
      walk(grid, Ray(m, r), Lattice(m, r), samples);
      counts[r] = samples.result();
    });
  }

  static void write(const Tensor& like, const Arguments& arguments, const int32_t*, const int32_t*, const Samples& s) {
    Arguments m = arguments;
    const Tensor bits = pack_bits(like, m);
    const Grid grid(m);
    parallel_for_rays(m.n_rays, kGrain, [&](int64_t r) {
      const int64_t begin = s.offsets[r], end = std::min<int64_t>(s.offsets[r + 1], s.n);
      if (begin >= end) return;
      const Lattice lattice(m, r);
      WriteSamples samples{lattice, begin, end, s.t_starts, s.t_ends};
      walk(grid, Ray(m, r), lattice, samples);
      std::fill(s.ray_indices + begin, s.ray_indices + end, int32_t(r));
    });
    const int64_t used = std::min<int64_t>(s.offsets[m.n_rays], s.n);
    std::fill(s.t_starts + used, s.t_starts + s.n, 0.0f);
    std::fill(s.t_ends + used, s.t_ends + s.n, 0.0f);
    std::fill(s.ray_indices + used, s.ray_indices + s.n, 0);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "march_count(Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor? jitter, Tensor occupancy, "
      "Tensor aabb, float step_size, float cone_angle, Tensor? bins) -> (Tensor counts, Tensor plan)");
  m.def(
      "march_write(Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor? jitter, Tensor occupancy, "
      "Tensor aabb, float step_size, float cone_angle, Tensor? bins, Tensor counts, Tensor plan, "
      "Tensor offsets, int n) "
      "-> (Tensor t_starts, Tensor t_ends, Tensor ray_indices)");
  m.def(
      "march_pack(Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor? jitter, Tensor occupancy, "
      "Tensor aabb, float step_size, float cone_angle, Tensor? bins, int capacity) "
      "-> (Tensor t_starts, Tensor t_ends, Tensor ray_indices, Tensor offsets, Tensor kept)");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("march_count", TORCH_BOX(&march_count<Cpu>));
  m.impl("march_write", TORCH_BOX(&march_write<Cpu>));
  m.impl("march_pack", TORCH_BOX(&march_pack<Cpu>));
}

}  // namespace lightning_nerf::march
