// Arguments and results of the pack op, the same for both launchers; march and visibility count, pack and write in one call.
#pragma once
#include "stable.h"

namespace lightning_nerf::pack {

struct Arguments {
  const int32_t* counts;  // [R]
  const bool* before;     // [R] or null
  int64_t n_rays, capacity;

  int32_t* offsets;  // [R + 1]
  bool* kept;        // [R]
};

// The launchers: they fill every entry of the results; `like` says on which device.
using Run = void(const Tensor& like, const Arguments&);
Run run_on_cpu, run_on_cuda;

// offsets [R + 1], and which rays are kept [R]: those that fit, where `before` is given only if that holds too.
template <Run* run>
std::tuple<Tensor, Tensor> packed(const Tensor& counts, const std::optional<Tensor>& before, int64_t capacity) {
  check_int(counts, "counts");
  const int64_t n_rays = counts.size(0);
  Tensor offsets = empty(counts, {n_rays + 1}, ScalarType::Int);
  Tensor kept = empty(counts, {n_rays}, ScalarType::Bool);
  run(counts, {data<int32_t>(counts), before.has_value() ? data<bool>(*before) : nullptr, n_rays, capacity,
               mutable_data<int32_t>(offsets), mutable_data<bool>(kept)});
  return {offsets, kept};
}

template <Run* run>
std::tuple<Tensor, Tensor> pack_offsets(const Tensor& counts, int64_t capacity) {
  return packed<run>(counts, std::nullopt, capacity);
}

}  // namespace lightning_nerf::pack
