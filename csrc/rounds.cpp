#include "rounds.h"

#include <algorithm>

namespace lightning_nerf::rounds {
namespace {

constexpr int64_t kGrain = 1024;  // of numbers; some ten microseconds of work

void mark(const Tensor&, const float* near, const float* far, int64_t n_rays, int32_t* counts) {
  parallel_for(n_rays, 16 * kGrain, [&](int64_t ray) { counts[ray] = is_active(near[ray], far[ray]); });
}

void choose(const Tensor&, const Choice& c) {
  parallel_for(c.count, kGrain, [&](int64_t slot) { c.choose(slot); });
}

void write(const Tensor&, const Intervals& s) {
  parallel_for_rays(s.k, std::max<int64_t>(1, kGrain / (s.n + 1)), [&](int64_t row) {
    const Way way(s.near[row], s.far[row], s.spacing);
    for (int64_t j = 0; j <= s.n; ++j) s.write_edge(way, row, j);
  });
  for (int64_t i = s.k * s.n; i < s.capacity; ++i) s.write_tail(i);
  for (int64_t ray = 0; ray <= s.n_rays; ++ray) s.write_offset(ray);
}

void accumulate(const Tensor&, const Cdfs& c) {
  const float power = c.power();
  parallel_for_rays(c.k, std::max<int64_t>(1, kGrain / (c.n + 1)), [&](int64_t row) {
    double sum = 0.0;
    float* cdf = c.cdfs + row * (c.n + 1);
    cdf[0] = 0.0f;
    for (int64_t i = 0; i < c.n; ++i) cdf[i + 1] = float(sum += double(c.density(row * c.n + i, power)));
  });
}

void find(const Tensor&, const Counting& c) {
  parallel_for(c.k, 16 * kGrain, [&](int64_t row) { c.write(row); });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "round_rays(Tensor near, Tensor far, int capacity, int count, float nearest) "
      "-> (Tensor rays, Tensor row_near, Tensor row_far, Tensor used, Tensor offsets, Tensor kept)");
  m.def(
      "round_samples(Tensor edges, Tensor rays, Tensor near, Tensor far, Tensor used, Tensor entries, int spacing, "
      "int capacity) -> (Tensor t_starts, Tensor t_ends, Tensor ray_indices, Tensor offsets)");
  m.def("round_cdfs(Tensor weights, Tensor? key, float padding, int anneal_steps, float anneal_slope) -> Tensor");
  m.def("round_counting(Tensor counts, Tensor ray_indices, Tensor offsets, int k, int n) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("round_rays", TORCH_BOX((&round_rays<mark, pack::run_on_cpu, choose>)));
  m.impl("round_samples", TORCH_BOX(&round_samples<write>));
  m.impl("round_cdfs", TORCH_BOX(&round_cdfs<accumulate>));
  m.impl("round_counting", TORCH_BOX(&round_counting<find>));
}

}  // namespace lightning_nerf::rounds
