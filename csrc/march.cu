#include "cuda.cuh"
#include "march.h"
#include "march_segments.cuh"
#include "pack.h"

namespace lightning_nerf {
namespace {

constexpr int kMaxCoarse = 8192;  // words: 32 KiB of shared memory

// The grid as bits, for one call: it takes as long as to look whether it has changed.
std::tuple<Bits, Tensor> make_bits(const MarchArguments& m, const Tensor& occupancy, const Launch& launch) {
  Bits bits;
  int64_t n_blocks = m.levels;
  for (int a = 0; a < 3; ++a) n_blocks *= bits.blocks[a] = (m.resolution[a] + 3) / 4;
  STD_TORCH_CHECK(n_blocks < (int64_t(1) << 30), "occupancy has too many cells");
  int64_t n_coarse = 0;
  for (bits.shift = 2;; ++bits.shift) {
    const int64_t cells = int64_t(1) << bits.shift, x = (m.resolution[0] + cells - 1) / cells;
    const int64_t y = (m.resolution[1] + cells - 1) / cells;
    n_coarse = m.levels * x * y;
    bits.coarse_x = int(x), bits.coarse_y = int(y);
    if (n_coarse <= kMaxCoarse && m.resolution[2] <= 32 * cells) break;
  }
  bits.n_coarse = int(n_coarse);
  Tensor words = empty(occupancy, {2 * n_blocks + n_coarse}, ScalarType::Int);
  bits.cells = reinterpret_cast<uint32_t*>(mutable_data<int32_t>(words));
  bits.coarse = bits.cells + 2 * n_blocks;
  // A view's cells may begin anywhere.
  const bool whole_words = m.resolution[2] % 4 == 0 && reinterpret_cast<uintptr_t>(m.occupancy) % 4 == 0;
  march_bits_kernel<<<blocks(32 * n_coarse), kThreads, 0, launch.stream>>>(
      m.occupancy, m.resolution[0], m.resolution[1], m.resolution[2], whole_words, bits);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {bits, words};
}

struct March {
  const Launch& launch;
  const MarchArguments& m;
  bool plain;
  Tensor counts;  // [R]
  Tensor kept_plan;  // what the pass that counts has found, for the one that writes; [0]: not wanted
  Plan plan;

  int64_t groups() const { return (m.n_rays + kRays - 1) / kRays; }
  int64_t plan_size() const { return groups() * (kRays * kPlan + 1) + m.n_rays; }

  void lay_out(Tensor& words) {
    int32_t* const list = mutable_data<int32_t>(words);
    int32_t* const sizes = list + groups() * kRays * kPlan;
    plan = {reinterpret_cast<uint32_t*>(list), sizes, sizes + groups()};
  }

  template <bool kPlain>
  void count(const Bits& bits) {
    march_count_kernel<kPlain><<<blocks(groups(), kWarps), 32 * kWarps, 4 * bits.n_coarse, launch.stream>>>(
        m, bits, mutable_data<int32_t>(counts), plan);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  March(const Launch& launch, const MarchArguments& m, const Tensor& occupancy)
      : launch(launch), m(m), plain(m.levels == 1 && m.cone_angle <= 0.0),
        counts(empty(occupancy, {m.n_rays}, ScalarType::Int)), kept_plan(empty(occupancy, {plan_size()}, ScalarType::Int)) {
    lay_out(kept_plan);
    if (m.n_rays == 0) return;
    const auto [bits, words] = make_bits(m, occupancy, launch);
    if (plain) count<true>(bits);
    else count<false>(bits);
  }

  // With what another has counted.
  March(const Launch& launch, const MarchArguments& m, const Tensor& counted, const Tensor& planned)
      : launch(launch), m(m), plain(m.levels == 1 && m.cone_angle <= 0.0), counts(counted), kept_plan(planned) {
    check_int(counts, "counts");
    check_int(kept_plan, "plan");
    STD_TORCH_CHECK(counts.numel() == m.n_rays && kept_plan.numel() == plan_size(), "counts and plan must be march_count's");
    lay_out(kept_plan);
  }

  template <bool kPlain>
  void write(const Tensor& offsets, int64_t n, Tensor& t_starts, Tensor& t_ends, Tensor& ray_indices) {
    const unsigned int grid = groups() > 0 ? blocks(groups(), kWarps) : 1;
    march_write_kernel<kPlain><<<grid, 32 * kWarps, 0, launch.stream>>>(
        m, plan, data<int32_t>(counts), data<int32_t>(offsets), n, mutable_data<float>(t_starts),
        mutable_data<float>(t_ends), mutable_data<int32_t>(ray_indices));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  std::tuple<Tensor, Tensor, Tensor> write(const Tensor& offsets, int64_t n) {
    Tensor t_starts = empty(offsets, {n}, ScalarType::Float);
    Tensor t_ends = empty(offsets, {n}, ScalarType::Float);
    Tensor ray_indices = empty(offsets, {n}, ScalarType::Int);
    if (n == 0) return {t_starts, t_ends, ray_indices};
    if (plain) write<true>(offsets, n, t_starts, t_ends, ray_indices);
    else write<false>(offsets, n, t_starts, t_ends, ray_indices);
    return {t_starts, t_ends, ray_indices};
  }
};

std::tuple<Tensor, Tensor> march_count(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
    const std::optional<Tensor>& jitter, const Tensor& occupancy, const Tensor& aabb, double step_size,
    double cone_angle) {
  const Launch launch(origins);
  const MarchArguments m =
      march_arguments(origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle);
  const March march(launch, m, occupancy);
  return {march.counts, march.kept_plan};
}

std::tuple<Tensor, Tensor, Tensor> march_write(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
    const std::optional<Tensor>& jitter, const Tensor& occupancy, const Tensor& aabb, double step_size,
    double cone_angle, const Tensor& counts, const Tensor& plan, const Tensor& offsets, int64_t n) {
  const Launch launch(origins);
  const MarchArguments m =
      march_arguments(origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle);
  check_int(offsets, "offsets");
  return March(launch, m, counts, plan).write(offsets, n);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> march_pack(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
    const std::optional<Tensor>& jitter, const Tensor& occupancy, const Tensor& aabb, double step_size,
    double cone_angle, int64_t capacity) {
  const Launch launch(origins);
  const MarchArguments m =
      march_arguments(origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle);
  March march(launch, m, occupancy);
  const auto [offsets, kept] = pack_on_cuda(march.counts, std::nullopt, capacity);
  const auto [t_starts, t_ends, ray_indices] = march.write(offsets, capacity);
  return {t_starts, t_ends, ray_indices, offsets, kept};
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("march_count", TORCH_BOX(&lightning_nerf::march_count));
  m.impl("march_write", TORCH_BOX(&lightning_nerf::march_write));
  m.impl("march_pack", TORCH_BOX(&lightning_nerf::march_pack));
}
