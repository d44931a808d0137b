#include "march.h"
#include "pack.h"

#include <algorithm>
#include <cstring>

namespace lightning_nerf {
namespace {

// The grid as bits: rays visit cells all over it, and in the caches there is room for eight times as many.
Tensor pack_bits(const Tensor& occupancy, MarchArguments& m) {
  const int64_t n = occupancy.numel();
  Tensor bits = empty(occupancy, {(n + 7) / 8}, ScalarType::Byte);
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

Tensor count_samples(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
    const std::optional<Tensor>& jitter, const Tensor& occupancy, const Tensor& aabb, double step_size,
    double cone_angle) {
  MarchArguments m =
      march_arguments(origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle);
  Tensor counts = empty(origins, {m.n_rays}, ScalarType::Int);
  int32_t* count = mutable_data<int32_t>(counts);
  const Tensor bits = pack_bits(occupancy, m);
  const Grid grid(m);
  parallel_for(m.n_rays, 16, [&](int64_t r) {
    CountSamples samples;
    march(grid, Ray(m, r), Lattice(m, r), samples);
    count[r] = samples.result();
  });
  return counts;
}

// The plan is for CUDA alone, where a march is not walked twice: here it is empty.
std::tuple<Tensor, Tensor> march_count(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
    const std::optional<Tensor>& jitter, const Tensor& occupancy, const Tensor& aabb, double step_size,
    double cone_angle) {
  return {count_samples(origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle),
          empty(origins, {0}, ScalarType::Int)};
}

std::tuple<Tensor, Tensor, Tensor> write_samples(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
    const std::optional<Tensor>& jitter, const Tensor& occupancy, const Tensor& aabb, double step_size,
    double cone_angle, const Tensor& offsets, int64_t n) {
  MarchArguments m =
      march_arguments(origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle);
  check_int(offsets, "offsets");
  Tensor t_starts = empty(origins, {n}, ScalarType::Float);
  Tensor t_ends = empty(origins, {n}, ScalarType::Float);
  Tensor ray_indices = empty(origins, {n}, ScalarType::Int);
  float* starts = mutable_data<float>(t_starts);
  float* ends = mutable_data<float>(t_ends);
  int32_t* indices = mutable_data<int32_t>(ray_indices);
  const int32_t* offset = data<int32_t>(offsets);
  const Tensor bits = pack_bits(occupancy, m);
  const Grid grid(m);
  parallel_for(m.n_rays, 16, [&](int64_t r) {
    const int64_t begin = offset[r], end = std::min<int64_t>(offset[r + 1], n);
    if (begin >= end) return;
    const Lattice lattice(m, r);
    WriteSamples samples{lattice, begin, end, starts, ends};
    march(grid, Ray(m, r), lattice, samples);
    std::fill(indices + begin, indices + end, int32_t(r));
  });
  const int64_t used = std::min<int64_t>(offset[m.n_rays], n);
  std::fill(starts + used, starts + n, 0.0f);
  std::fill(ends + used, ends + n, 0.0f);
  std::fill(indices + used, indices + n, 0);
  return {t_starts, t_ends, ray_indices};
}

std::tuple<Tensor, Tensor, Tensor> march_write(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
    const std::optional<Tensor>& jitter, const Tensor& occupancy, const Tensor& aabb, double step_size,
    double cone_angle, const Tensor&, const Tensor&, const Tensor& offsets, int64_t n) {
  return write_samples(origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle, offsets, n);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> march_pack(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
    const std::optional<Tensor>& jitter, const Tensor& occupancy, const Tensor& aabb, double step_size,
    double cone_angle, int64_t capacity) {
  const Tensor counts =
      count_samples(origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle);
  const auto [offsets, kept] = pack_on_cpu(counts, std::nullopt, capacity);
  const auto [t_starts, t_ends, ray_indices] = write_samples(
      origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle, offsets, capacity);
  return {t_starts, t_ends, ray_indices, offsets, kept};
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "march_count(Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor? jitter, Tensor occupancy, "
      "Tensor aabb, float step_size, float cone_angle) -> (Tensor counts, Tensor plan)");
  m.def(
      "march_write(Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor? jitter, Tensor occupancy, "
      "Tensor aabb, float step_size, float cone_angle, Tensor counts, Tensor plan, "
      "Tensor offsets, int n) "
      "-> (Tensor t_starts, Tensor t_ends, Tensor ray_indices)");
  m.def(
      "march_pack(Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor? jitter, Tensor occupancy, "
      "Tensor aabb, float step_size, float cone_angle, int capacity) "
      "-> (Tensor t_starts, Tensor t_ends, Tensor ray_indices, Tensor offsets, Tensor kept)");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("march_count", TORCH_BOX(&lightning_nerf::march_count));
  m.impl("march_write", TORCH_BOX(&lightning_nerf::march_write));
  m.impl("march_pack", TORCH_BOX(&lightning_nerf::march_pack));
}
