#include "stable.h"
#include "random.cuh"

namespace lightning_nerf {
namespace {

Tensor random_uniform(const Tensor& key, int64_t stream, int64_t n, int64_t k) {
  check(key, ScalarType::Long, "key");
  Tensor out = empty(key, {n, k}, ScalarType::Float);
  const int64_t* key_data = data<int64_t>(key);
  float* out_data = mutable_data<float>(out);
  parallel_for(n, 4096, [&](int64_t row) {
    random_uniform_row(key_data, uint32_t(stream), row, k, out_data + row * k);
  });
  return out;
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("random_uniform(Tensor key, int stream, int n, int k) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("random_uniform", TORCH_BOX(&lightning_nerf::random_uniform));
}
