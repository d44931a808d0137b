// Arguments and results of the importance ops, the same for both launchers.
#pragma once
#include "importance.cuh"
#include "stable.h"

namespace lightning_nerf::importance {

inline const int64_t* optional_longs(const std::optional<Tensor>& t, int64_t size, const char* name) {
  if (!t.has_value()) return nullptr;
  check(*t, ScalarType::Long, name);
  STD_TORCH_CHECK(t->numel() == size, name, " has the wrong size");
  return data<int64_t>(*t);
}

inline RayLists ray_lists(
    const Tensor& values, const std::optional<Tensor>& packed_info, int64_t n_rays, const char* name) {
  check_float(values, name);
  STD_TORCH_CHECK(n_rays >= 0, "n_rays must not be negative");
  const int64_t n = values.numel();
  STD_TORCH_CHECK(packed_info.has_value() || n_rays == 0 || n % n_rays == 0, name, " must be rows of one width");
  return {
      data<float>(values), optional_longs(packed_info, 2 * n_rays, "packed_info"), n, n_rays, n_rays > 0 ? n / n_rays : 0};
}

// run fills left and right; `like` says on which device.
template <void (*run)(const Tensor& like, const RayLists&, const Queries&)>
std::tuple<Tensor, Tensor> searchsorted(
    const Tensor& keys, const std::optional<Tensor>& packed_info, int64_t n_rays, const Tensor& queries,
    const std::optional<Tensor>& query_rays, bool relative) {
  const RayLists lists = ray_lists(keys, packed_info, n_rays, "keys");
  check_float(queries, "queries");
  const int64_t n = queries.numel();
  STD_TORCH_CHECK(query_rays.has_value() || n == 0 || (n_rays > 0 && n % n_rays == 0), "queries must be rows of one width");
  Tensor left = empty(keys, {n}, ScalarType::Long);
  Tensor right = empty(keys, {n}, ScalarType::Long);
  run(keys, lists,
      {data<float>(queries), optional_longs(query_rays, n, "query_rays"), n, n_rays > 0 ? n / n_rays : 0, relative,
       mutable_data<int64_t>(left), mutable_data<int64_t>(right)});
  return {left, right};
}

// run fills samples and edges.
template <void (*run)(const Tensor& like, const Resampling&)>
std::tuple<Tensor, Tensor> importance_sampling(
    const Tensor& edges, const Tensor& cdfs, const std::optional<Tensor>& packed_info, int64_t n_rays,
    const std::optional<Tensor>& sample_offsets, const std::optional<Tensor>& edge_offsets, int64_t n_samples,
    int64_t n_edges, const std::optional<Tensor>& jitter) {
  Resampling r;
  r.rays = ray_lists(edges, packed_info, n_rays, "edges");
  check_float(cdfs, "cdfs");
  STD_TORCH_CHECK(cdfs.numel() == r.rays.n, "cdfs must be as many as edges");
  if (jitter.has_value()) {
    check_float(*jitter, "jitter");
    STD_TORCH_CHECK(jitter->numel() == n_rays, "jitter must be [R]");
  }
  STD_TORCH_CHECK(sample_offsets.has_value() == edge_offsets.has_value(), "both offsets or none");
  STD_TORCH_CHECK(
      sample_offsets.has_value() || (n_edges == n_samples + n_rays && (n_rays == 0 || n_samples % n_rays == 0)),
      "without offsets each ray gets as many samples");
  r.cdfs = data<float>(cdfs);
  r.jitter = jitter.has_value() ? data<float>(*jitter) : nullptr;
  r.sample_offsets = optional_longs(sample_offsets, n_rays + 1, "sample_offsets");
  r.edge_offsets = optional_longs(edge_offsets, n_rays + 1, "edge_offsets");
  r.n_samples = n_samples;
  Tensor samples = empty(edges, {n_samples}, ScalarType::Float);
  Tensor new_edges = empty(edges, {n_edges}, ScalarType::Float);
  r.samples = mutable_data<float>(samples);
  r.edges = mutable_data<float>(new_edges);
  run(edges, r);
  return {samples, new_edges};
}

}  // namespace lightning_nerf::importance
