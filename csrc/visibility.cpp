#include "visibility.h"

#include <algorithm>

namespace lightning_nerf::visibility {
namespace {

constexpr int64_t kGrain = 64;  // rays

void count(const Tensor&, const Samples& s, int32_t* counts) {
  const Limits limits = limits_of(s.log_eps, *s.alpha_thre);
  parallel_for_rays(s.n_rays, kGrain, [&](int64_t r) {
    double before = 0.0;
    counts[r] = 0;
    const int64_t begin = s.offsets[r], last = std::min(s.last, s.offsets[r + 1] - begin);
    for (int64_t i = begin; i < begin + last && before <= limits.before; ++i) {
      const double within = optical_depth(s.densities[i], s.t_starts[i], s.t_ends[i]);
      counts[r] += i >= begin + s.first && visible(limits, before, within);
      before += within;
    }
  });
}

void write(const Tensor&, const Samples& s, const int32_t* new_offsets, int64_t n, const Kept& out) {
  const Limits limits = limits_of(s.log_eps, *s.alpha_thre);
  parallel_for_rays(s.n_rays, kGrain, [&](int64_t r) {
    double before = 0.0;
    int64_t to = new_offsets[r];
    const int64_t end = std::min<int64_t>(new_offsets[r + 1], n);
    const int64_t begin = s.offsets[r], last = std::min(s.last, s.offsets[r + 1] - begin);
    for (int64_t i = begin; i < begin + last && to < end; ++i) {
      const double within = optical_depth(s.densities[i], s.t_starts[i], s.t_ends[i]);
      if (i >= begin + s.first && visible(limits, before, within)) {
        out.t_starts[to] = s.t_starts[i];
        out.t_ends[to] = s.t_ends[i];
        out.sources[to] = int32_t(i);
        out.ray_indices[to++] = int32_t(r);
      }
      before += within;
    }
  });
  const int64_t used = std::min<int64_t>(new_offsets[s.n_rays], n);
  std::fill(out.t_starts + used, out.t_starts + n, 0.0f);
  std::fill(out.t_ends + used, out.t_ends + n, 0.0f);
  std::fill(out.ray_indices + used, out.ray_indices + n, 0);
  std::fill(out.sources + used, out.sources + n, 0);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "visibility_count(Tensor densities, Tensor t_starts, Tensor t_ends, Tensor offsets, float early_stop_eps, "
      "Tensor alpha_thre, int first, int last) -> Tensor");
  m.def(
      "visibility_write(Tensor densities, Tensor t_starts, Tensor t_ends, Tensor offsets, float early_stop_eps, "
      "Tensor alpha_thre, int first, int last, Tensor new_offsets, int n) -> (Tensor t_starts, Tensor t_ends, Tensor "
      "ray_indices, Tensor sources)");
  m.def(
      "visibility_pack(Tensor densities, Tensor t_starts, Tensor t_ends, Tensor offsets, Tensor kept, "
      "float early_stop_eps, Tensor alpha_thre, int first, int last, int capacity) -> (Tensor t_starts, Tensor t_ends, "
      "Tensor ray_indices, Tensor new_offsets, Tensor new_kept, Tensor sources)");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("visibility_count", TORCH_BOX(&visibility_count<count>));
  m.impl("visibility_write", TORCH_BOX(&visibility_write<write>));
  m.impl("visibility_pack", TORCH_BOX((&visibility_pack<count, pack::run_on_cpu, write>)));
}

}  // namespace lightning_nerf::visibility
