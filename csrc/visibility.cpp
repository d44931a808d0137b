#include "pack.h"
#include "visibility.h"

#include <algorithm>

namespace lightning_nerf {
namespace {

Tensor visibility_count(
    const Tensor& densities, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets, double early_stop_eps,
    const Tensor& alpha_thre) {
  check_visibility(densities, t_starts, t_ends, offsets, alpha_thre);
  const int64_t n_rays = offsets.size(0) - 1;
  Tensor counts = empty(densities, {n_rays}, ScalarType::Int);
  const float* density = data<float>(densities);
  const float* starts = data<float>(t_starts);
  const float* ends = data<float>(t_ends);
  const int32_t* offset = data<int32_t>(offsets);
  int32_t* count = mutable_data<int32_t>(counts);
  const VisibilityLimits limits = visibility_limits(std::log(early_stop_eps), *data<float>(alpha_thre));
  parallel_for(n_rays, 64, [&](int64_t r) {
    double before = 0.0;
    count[r] = 0;
    for (int64_t i = offset[r]; i < offset[r + 1] && before <= limits.before; ++i) {
      const double within = optical_depth(density[i], starts[i], ends[i]);
      count[r] += visible(limits, before, within);
      before += within;
    }
  });
  return counts;
}

Survivors visibility_write(
    const Tensor& densities, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets, double early_stop_eps,
    const Tensor& alpha_thre, const Tensor& new_offsets, int64_t n) {
  check_visibility(densities, t_starts, t_ends, offsets, alpha_thre);
  check_int(new_offsets, "new_offsets");
  const int64_t n_rays = offsets.size(0) - 1;
  Survivors survivors = empty_survivors(densities, n);
  auto& [new_starts, new_ends, ray_indices, sources] = survivors;
  const float* density = data<float>(densities);
  const float* starts = data<float>(t_starts);
  const float* ends = data<float>(t_ends);
  const int32_t* offset = data<int32_t>(offsets);
  const int32_t* new_offset = data<int32_t>(new_offsets);
  float* out_starts = mutable_data<float>(new_starts);
  float* out_ends = mutable_data<float>(new_ends);
  int32_t* out_rays = mutable_data<int32_t>(ray_indices);
  int32_t* out_sources = mutable_data<int32_t>(sources);
  const VisibilityLimits limits = visibility_limits(std::log(early_stop_eps), *data<float>(alpha_thre));
  parallel_for(n_rays, 64, [&](int64_t r) {
    double before = 0.0;
    int64_t out = new_offset[r];
    const int64_t out_end = std::min<int64_t>(new_offset[r + 1], n);
    for (int64_t i = offset[r]; i < offset[r + 1] && out < out_end; ++i) {
      const double within = optical_depth(density[i], starts[i], ends[i]);
      if (visible(limits, before, within)) {
        out_starts[out] = starts[i];
        out_ends[out] = ends[i];
        out_sources[out] = int32_t(i);
        out_rays[out++] = int32_t(r);
      }
      before += within;
    }
  });
  const int64_t used = std::min<int64_t>(new_offset[n_rays], n);
  std::fill(out_starts + used, out_starts + n, 0.0f);
  std::fill(out_ends + used, out_ends + n, 0.0f);
  std::fill(out_rays + used, out_rays + n, 0);
  std::fill(out_sources + used, out_sources + n, 0);
  return survivors;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> visibility_pack(
    const Tensor& densities, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets, const Tensor& kept,
    double early_stop_eps, const Tensor& alpha_thre, int64_t capacity) {
  check(kept, ScalarType::Bool, "kept");
  const Tensor counts = visibility_count(densities, t_starts, t_ends, offsets, early_stop_eps, alpha_thre);
  const auto [new_offsets, new_kept] = pack_on_cpu(counts, kept, capacity);
  const auto [new_starts, new_ends, ray_indices, sources] = visibility_write(
      densities, t_starts, t_ends, offsets, early_stop_eps, alpha_thre, new_offsets, capacity);
  return {new_starts, new_ends, ray_indices, new_offsets, new_kept, sources};
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "visibility_count(Tensor densities, Tensor t_starts, Tensor t_ends, Tensor offsets, float early_stop_eps, "
      "Tensor alpha_thre) -> Tensor");
  m.def(
      "visibility_write(Tensor densities, Tensor t_starts, Tensor t_ends, Tensor offsets, float early_stop_eps, "
      "Tensor alpha_thre, Tensor new_offsets, int n) -> (Tensor t_starts, Tensor t_ends, Tensor ray_indices, Tensor sources)");
  m.def(
      "visibility_pack(Tensor densities, Tensor t_starts, Tensor t_ends, Tensor offsets, Tensor kept, "
      "float early_stop_eps, Tensor alpha_thre, int capacity) -> (Tensor t_starts, Tensor t_ends, Tensor ray_indices, "
      "Tensor new_offsets, Tensor new_kept, Tensor sources)");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("visibility_count", TORCH_BOX(&lightning_nerf::visibility_count));
  m.impl("visibility_write", TORCH_BOX(&lightning_nerf::visibility_write));
  m.impl("visibility_pack", TORCH_BOX(&lightning_nerf::visibility_pack));
}
