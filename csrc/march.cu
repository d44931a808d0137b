#include "cuda.cuh"
#include "march.h"
#include "march_segments.cuh"

namespace lightning_nerf::march {
namespace {

constexpr int kMaxCoarse = 8192;  // words: 32 KiB of shared memory

// The grid as bits, for one call: it takes as long as to look whether it has changed.
std::tuple<Bits, Tensor> make_bits(const Tensor& like, const Arguments& m, const Launch& launch) {
  Bits bits;
  int64_t n_blocks = m.levels;
  for (int a = 0; a < 3; ++a) n_blocks *= bits.blocks[a] = (m.resolution[a] + 3) / 4;
  // Words are indexed by int, and bins by blockIdx.y.
  STD_TORCH_CHECK(n_blocks * m.n_bins < (int64_t(1) << 30) && m.n_bins < (1 << 16), "occupancy has too many cells or bins");
  bits.words_of_bin = int(2 * n_blocks);
  int64_t n_coarse = 0;
  for (bits.shift = 2;; ++bits.shift) {
    const int64_t cells = int64_t(1) << bits.shift, x = (m.resolution[0] + cells - 1) / cells;
    const int64_t y = (m.resolution[1] + cells - 1) / cells;
    n_coarse = m.levels * x * y;
    bits.coarse_x = int(x), bits.coarse_y = int(y);
    if (n_coarse <= kMaxCoarse && m.resolution[2] <= 32 * cells) break;
  }
  bits.n_coarse = int(n_coarse);
  Tensor words = empty(like, {2 * n_blocks * m.n_bins + n_coarse}, ScalarType::Int);
  bits.cells = reinterpret_cast<uint32_t*>(mutable_data<int32_t>(words));
  bits.coarse = bits.cells + 2 * n_blocks * m.n_bins;
  if (m.n_bins > 1) STD_CUDA_CHECK(cudaMemsetAsync(bits.coarse, 0, 4 * n_coarse, launch.stream));
  // A view's cells may begin anywhere.
  const bool whole_words = m.resolution[2] % 4 == 0 && reinterpret_cast<uintptr_t>(m.occupancy) % 4 == 0;
  bits_kernel<<<dim3(blocks(32 * n_coarse), m.n_bins), kThreads, 0, launch.stream>>>(
      m.occupancy, m.cells_of_bin, m.resolution[0], m.resolution[1], m.resolution[2], whole_words, bits);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {bits, words};
}

int64_t n_groups(int64_t n_rays) { return (n_rays + kRays - 1) / kRays; }

// The plan's parts in the words that plan_size counts.
Plan lay_out(int32_t* words, int64_t n_rays) {
  int32_t* const sizes = words + n_groups(n_rays) * kRays * kPlan;
  return {reinterpret_cast<uint32_t*>(words), sizes, sizes + n_groups(n_rays)};
}

bool is_plain(const Arguments& m) { return m.levels == 1 && m.cone_angle <= 0.0; }

struct Cuda {
  static constexpr pack::Run* run_pack = &pack::run_on_cuda;

  static int64_t plan_size(int64_t n_rays) { return n_groups(n_rays) * (kRays * kPlan + 1) + n_rays; }

  static void count(const Tensor& like, const Arguments& m, int32_t* counts, int32_t* plan) {
    const Launch launch(like);
    if (m.n_rays == 0) return;
    const auto [bits, words] = make_bits(like, m, launch);
    const auto kernel = m.bins ? (is_plain(m) ? count_kernel<true, true> : count_kernel<false, true>)
                               : (is_plain(m) ? count_kernel<true, false> : count_kernel<false, false>);
    kernel<<<blocks(n_groups(m.n_rays), kWarps), 32 * kWarps, 4 * bits.n_coarse, launch.stream>>>(
        m, bits, counts, lay_out(plan, m.n_rays));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void write(const Tensor& like, const Arguments& m, const int32_t* counts, const int32_t* plan, const Samples& s) {
    const Launch launch(like);
    if (s.n == 0) return;
    const unsigned int grid = m.n_rays > 0 ? blocks(n_groups(m.n_rays), kWarps) : 1;
    const auto kernel = is_plain(m) ? write_kernel<true> : write_kernel<false>;
    kernel<<<grid, 32 * kWarps, 0, launch.stream>>>(
        m, lay_out(const_cast<int32_t*>(plan), m.n_rays),  // which the kernel only reads
        counts, s.offsets, s.n, s.t_starts, s.t_ends, s.ray_indices);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("march_count", TORCH_BOX(&march_count<Cuda>));
  m.impl("march_write", TORCH_BOX(&march_write<Cuda>));
  m.impl("march_pack", TORCH_BOX(&march_pack<Cuda>));
}

}  // namespace lightning_nerf::march
