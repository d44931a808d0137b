#include "importance.h"

#include <cmath>

namespace lightning_nerf::importance {
namespace {

void search_all(const Tensor&, const RayLists& keys, const Queries& queries) {
  parallel_for(queries.n, 1024, [&](int64_t i) { search(keys, queries, i); });
}

void resample(const Tensor&, const Resampling& r) {
  parallel_for_rays(r.rays.n_rays, 16, [&](int64_t ray) {
    const Resampling::Range range = r.range(ray);
    if (!range.any_edge) return;
    bool finite = true;
    for (int64_t j = 0; j < r.rays.count(ray); ++j) finite = finite && std::isfinite(r.cdfs[r.rays.begin(ray) + j]);
    const Inverse inverse = r.inverse(ray, range.n, finite);
    float* samples = r.samples + range.sample;
    float* edges = r.edges + range.edge;
    for (int64_t k = 0; k < range.n; ++k) {
      samples[k] = inverse.sample(k);
      if (k > 0) edges[k] = (samples[k - 1] + samples[k]) * 0.5f;
    }
    const int64_t n = range.n;
    edges[0] = n < 2 ? inverse.first() : inverse.first_edge(samples[0], samples[1]);
    if (n > 0) edges[n] = n < 2 ? inverse.last() : inverse.last_edge(samples[n - 2], samples[n - 1]);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "searchsorted(Tensor keys, Tensor? packed_info, int n_rays, Tensor queries, Tensor? query_rays, bool relative) "
      "-> (Tensor left, Tensor right)");
  m.def(
      "importance_sampling(Tensor edges, Tensor cdfs, Tensor? packed_info, int n_rays, Tensor? sample_offsets, "
      "Tensor? edge_offsets, int n_samples, int n_edges, Tensor? jitter) -> (Tensor samples, Tensor new_edges)");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("searchsorted", TORCH_BOX(&searchsorted<search_all>));
  m.impl("importance_sampling", TORCH_BOX(&importance_sampling<resample>));
}

}  // namespace lightning_nerf::importance
