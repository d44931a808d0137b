// Arguments and result of the random op, the same for both launchers.
#pragma once
#include "random.cuh"
#include "stable.h"

namespace lightning_nerf::random {

struct Arguments {
  const int64_t* key;  // [3]
  uint32_t stream;
  int64_t n, k;

  float* out;  // [n, k]
};

// run fills every entry of the result; `like` says on which device.
template <void (*run)(const Tensor& like, const Arguments&)>
Tensor random_uniform(const Tensor& key, int64_t stream, int64_t n, int64_t k) {
  check(key, ScalarType::Long, "key");
  Tensor out = empty(key, {n, k}, ScalarType::Float);
  run(key, {data<int64_t>(key), uint32_t(stream), n, k, mutable_data<float>(out)});
  return out;
}

}  // namespace lightning_nerf::random
