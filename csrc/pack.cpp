#include "pack.h"

namespace lightning_nerf::pack {

void run_on_cpu(const Tensor&, const Arguments& a) {
  int64_t total = 0;
  bool fits = true;
  a.offsets[0] = 0;
  for (int64_t ray = 0; ray < a.n_rays; ++ray) {
    const int32_t count = a.counts[ray];
    fits = fits && count != INT32_MAX && total + count <= a.capacity;
    if (fits) total += count;
    a.offsets[ray + 1] = int32_t(total);
    a.kept[ray] = fits && (!a.before || a.before[ray]);
  }
}

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("pack_offsets(Tensor counts, int capacity) -> (Tensor offsets, Tensor kept)");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) { m.impl("pack_offsets", TORCH_BOX(&pack_offsets<run_on_cpu>)); }

}  // namespace lightning_nerf::pack
