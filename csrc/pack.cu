#include "cuda.cuh"
#include "pack.cuh"
#include "pack.h"

#include <algorithm>

namespace lightning_nerf::pack {

void run_on_cuda(const Tensor& like, const Arguments& a) {
  const Launch launch(like);
  int64_t tile_size = kPackThreads;
  while (a.n_rays > kMaxTiles * tile_size) tile_size *= 2;
  const int64_t n_tiles = std::max<int64_t>(1, (a.n_rays + tile_size - 1) / tile_size);
  Tensor sums = empty(like, {n_tiles > kDirectTiles ? n_tiles : 0}, ScalarType::Long);
  int64_t* sums_data = nullptr;
  if (n_tiles > kDirectTiles) {
    sums_data = mutable_data<int64_t>(sums);
    sums_kernel<<<blocks(32 * n_tiles), kThreads, 0, launch.stream>>>(a.counts, a.n_rays, tile_size, n_tiles, sums_data);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  offsets_kernel<<<static_cast<unsigned>(n_tiles), kPackThreads, 0, launch.stream>>>(
      a.counts, sums_data, a.before, a.n_rays, tile_size, a.capacity, a.offsets, a.kept);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) { m.impl("pack_offsets", TORCH_BOX(&pack_offsets<run_on_cuda>)); }

}  // namespace lightning_nerf::pack
