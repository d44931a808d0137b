#include "pack.h"

namespace lightning_nerf {

std::tuple<Tensor, Tensor> pack_on_cpu(
    const Tensor& counts, const std::optional<Tensor>& before, int64_t capacity) {
  check_int(counts, "counts");
  const int64_t n_rays = counts.size(0);
  Tensor offsets = empty(counts, {n_rays + 1}, ScalarType::Int);
  Tensor kept = empty(counts, {n_rays}, ScalarType::Bool);
  const int32_t* count = data<int32_t>(counts);
  const bool* kept_before = before.has_value() ? data<bool>(*before) : nullptr;
  int32_t* offset = mutable_data<int32_t>(offsets);
  bool* keep = mutable_data<bool>(kept);
  int64_t total = 0;
  bool fits = true;
  offset[0] = 0;
  for (int64_t ray = 0; ray < n_rays; ++ray) {
    fits = fits && count[ray] != INT32_MAX && total + count[ray] <= capacity;
    if (fits) total += count[ray];
    offset[ray + 1] = int32_t(total);
    keep[ray] = fits && (!kept_before || kept_before[ray]);
  }
  return {offsets, kept};
}

namespace {

std::tuple<Tensor, Tensor> pack_offsets(const Tensor& counts, int64_t capacity) {
  return pack_on_cpu(counts, std::nullopt, capacity);
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("pack_offsets(Tensor counts, int capacity) -> (Tensor offsets, Tensor kept)");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("pack_offsets", TORCH_BOX(&lightning_nerf::pack_offsets));
}
