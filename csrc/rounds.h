// Arguments and results of the ops on rounds, the same for both launchers.
#pragma once
#include "pack.h"
#include "rounds.cuh"
#include "stable.h"

namespace lightning_nerf::rounds {

inline void check_rows(const Tensor& rays, const Tensor& near, const Tensor& far, const Tensor& used, int64_t k) {
  check(rays, ScalarType::Long, "rays");
  check_float(near, "near");
  check_float(far, "far");
  check(used, ScalarType::Bool, "used");
  STD_TORCH_CHECK(
      rays.numel() == k && near.numel() == k && far.numel() == k && used.numel() == k, "rows must be as many as edges");
}

// The launchers fill every entry of the results; `like` says on which device.
using Mark = void(const Tensor& like, const float* near, const float* far, int64_t n_rays, int32_t* counts);
using Choose = void(const Tensor& like, const Choice&);
using Write = void(const Tensor& like, const Intervals&);
using Accumulate = void(const Tensor& like, const Cdfs&);
using Find = void(const Tensor& like, const Counting&);

template <Mark* mark, pack::Run* run_pack, Choose* choose>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> round_rays(
    const Tensor& near, const Tensor& far, int64_t capacity, int64_t count, double nearest) {
  check_float(near, "near");
  check_float(far, "far");
  const int64_t n_rays = near.numel();
  STD_TORCH_CHECK(far.numel() == n_rays, "near and far must have the same length");
  STD_TORCH_CHECK(count >= 0 && count <= n_rays, "count must be in [0, R]");
  Tensor counts = empty(near, {n_rays}, ScalarType::Int);
  mark(near, data<float>(near), data<float>(far), n_rays, mutable_data<int32_t>(counts));
  const auto [offsets, kept] = pack::packed<run_pack>(counts, std::nullopt, capacity);
  Tensor rays = empty(near, {count}, ScalarType::Long);
  Tensor row_near = empty(near, {count}, ScalarType::Float);
  Tensor row_far = empty(near, {count}, ScalarType::Float);
  Tensor used = empty(near, {count}, ScalarType::Bool);
  choose(
      near,
      {data<float>(near), data<float>(far), data<int32_t>(offsets), n_rays, count, float(nearest),
       mutable_data<int64_t>(rays), mutable_data<float>(row_near), mutable_data<float>(row_far), mutable_data<bool>(used)});
  return {rays, row_near, row_far, used, offsets, kept};
}

template <Write* write>
std::tuple<Tensor, Tensor, Tensor, Tensor> round_samples(
    const Tensor& edges, const Tensor& rays, const Tensor& near, const Tensor& far, const Tensor& used,
    const Tensor& entries, int64_t spacing, int64_t capacity) {
  check_float(edges, "edges");
  check_int(entries, "entries");
  STD_TORCH_CHECK(edges.dim() == 2 && edges.size(1) >= 1 && entries.numel() >= 1, "edges must be [K, n + 1]");
  STD_TORCH_CHECK(spacing >= kPlaces && spacing <= kDisparity, "spacing must be 0, 1 or 2");
  const int64_t k = edges.size(0), n = edges.size(1) - 1;
  check_rows(rays, near, far, used, k);
  STD_TORCH_CHECK(capacity >= k * n, "capacity must be at least the number of samples");
  Tensor t_starts = empty(edges, {capacity}, ScalarType::Float);
  Tensor t_ends = empty(edges, {capacity}, ScalarType::Float);
  Tensor ray_indices = empty(edges, {capacity}, ScalarType::Int);
  Tensor offsets = empty(edges, {entries.numel()}, ScalarType::Int);
  write(
      edges, {data<float>(edges), data<int64_t>(rays), data<float>(near), data<float>(far), data<bool>(used),
              data<int32_t>(entries), k, n, entries.numel() - 1, spacing, capacity, mutable_data<float>(t_starts),
              mutable_data<float>(t_ends), mutable_data<int32_t>(ray_indices), mutable_data<int32_t>(offsets)});
  return {t_starts, t_ends, ray_indices, offsets};
}

template <Accumulate* accumulate>
Tensor round_cdfs(
    const Tensor& weights, const std::optional<Tensor>& key, double padding, int64_t anneal_steps, double anneal_slope) {
  check_float(weights, "weights");
  STD_TORCH_CHECK(weights.dim() == 2, "weights must be [K, n]");
  if (key.has_value()) {
    check(*key, ScalarType::Long, "key");
    STD_TORCH_CHECK(key->numel() == 3, "key must be [3]");
  }
  const int64_t k = weights.size(0), n = weights.size(1);
  Tensor cdfs = empty(weights, {k, n + 1}, ScalarType::Float);
  accumulate(
      weights, {data<float>(weights), key.has_value() ? data<int64_t>(*key) : nullptr, k, n, float(padding), anneal_steps,
                float(anneal_slope), mutable_data<float>(cdfs)});
  return cdfs;
}

template <Find* find>
Tensor round_counting(const Tensor& counts, const Tensor& ray_indices, const Tensor& offsets, int64_t k, int64_t n) {
  check(counts, ScalarType::Bool, "counts");
  check_int(ray_indices, "ray_indices");
  check_int(offsets, "offsets");
  STD_TORCH_CHECK(offsets.numel() == counts.numel() + 1, "offsets must be [R + 1]");
  STD_TORCH_CHECK(k >= 0 && n >= 1 && ray_indices.numel() >= k * n, "ray_indices must hold K rows of n");
  Tensor counting = empty(counts, {k}, ScalarType::Bool);
  find(
      counts, {data<bool>(counts), data<int32_t>(ray_indices), data<int32_t>(offsets), counts.numel(), k, n,
               mutable_data<bool>(counting)});
  return counting;
}

}  // namespace lightning_nerf::rounds
