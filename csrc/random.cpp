#include "random.h"

namespace lightning_nerf::random {
namespace {

constexpr int64_t kGrain = 4096;  // rows

void uniform(const Tensor&, const Arguments& a) {
  parallel_for(a.n, kGrain, [&](int64_t row) { random_uniform_row(a.key, a.stream, row, a.k, a.out + row * a.k); });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("random_uniform(Tensor key, int stream, int n, int k) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) { m.impl("random_uniform", TORCH_BOX(&random_uniform<uniform>)); }

}  // namespace lightning_nerf::random
