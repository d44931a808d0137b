#include "cuda.cuh"
#include "pack.cuh"
#include "pack.h"

#include <algorithm>

namespace lightning_nerf {

std::tuple<Tensor, Tensor> pack_on_cuda(
    const Tensor& counts, const std::optional<Tensor>& before, int64_t capacity) {
  check_int(counts, "counts");
  const Launch launch(counts);
  const int64_t n_rays = counts.size(0);
  Tensor offsets = empty(counts, {n_rays + 1}, ScalarType::Int);
  Tensor kept = empty(counts, {n_rays}, ScalarType::Bool);
  int64_t tile_size = kPackThreads;
  while (n_rays > kMaxTiles * tile_size) tile_size *= 2;
  const int64_t n_tiles = std::max<int64_t>(1, (n_rays + tile_size - 1) / tile_size);
  Tensor sums = empty(counts, {n_tiles > kDirectTiles ? n_tiles : 0}, ScalarType::Long);
  int64_t* sums_data = nullptr;
  if (n_tiles > kDirectTiles) {
    sums_data = mutable_data<int64_t>(sums);
    pack_sums_kernel<<<blocks(32 * n_tiles), kThreads, 0, launch.stream>>>(
        data<int32_t>(counts), n_rays, tile_size, n_tiles, sums_data);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  pack_offsets_kernel<<<static_cast<unsigned>(n_tiles), kPackThreads, 0, launch.stream>>>(
      data<int32_t>(counts), sums_data, before.has_value() ? data<bool>(*before) : nullptr, n_rays, tile_size, capacity,
      mutable_data<int32_t>(offsets), mutable_data<bool>(kept));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {offsets, kept};
}

namespace {

std::tuple<Tensor, Tensor> pack_offsets(const Tensor& counts, int64_t capacity) {
  return pack_on_cuda(counts, std::nullopt, capacity);
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("pack_offsets", TORCH_BOX(&lightning_nerf::pack_offsets));
}
