#include "ray_offsets.h"

namespace lightning_nerf::ray_offsets {
namespace {

constexpr int64_t kGrain = 1024;  // rays

void bisect(const Tensor&, const Arguments& a) {
  a.with_indices([&](const auto* indices) {
    parallel_for(a.n_rays + 1, kGrain, [&](int64_t ray) { a.offsets[ray] = ray_begin(indices, a.n, ray); });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) { m.def("ray_offsets(Tensor ray_indices, int n_rays) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) { m.impl("ray_offsets", TORCH_BOX(&ray_offsets<bisect>)); }

}  // namespace lightning_nerf::ray_offsets
