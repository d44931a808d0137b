// Arguments and results of the march ops, the same for both launchers.
#pragma once
#include "march.cuh"
#include "pack.h"
#include "stable.h"

namespace lightning_nerf::march {

inline Arguments make_arguments(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
    const std::optional<Tensor>& jitter, const Tensor& occupancy, const Tensor& aabb, double step_size, double cone_angle,
    const std::optional<Tensor>& bins) {
  check_float(origins, "origins");
  check_float(directions, "directions");
  check_float(near, "near");
  check_float(far, "far");
  if (jitter.has_value()) check_float(*jitter, "jitter");
  check(occupancy, ScalarType::Bool, "occupancy");
  check_float(aabb, "aabb");
  if (bins.has_value()) check_int(*bins, "bins");
  const int first = bins.has_value();  // of the dimensions that are one grid's
  STD_TORCH_CHECK(
      occupancy.dim() == first + 4 && occupancy.numel() > 0,
      "occupancy must be [L, X, Y, Z], or with bins [B, L, X, Y, Z], none of them 0");
  STD_TORCH_CHECK(occupancy.size(first) <= 8, "occupancy has more than 8 levels");
  for (int a = 1; a < 4; ++a)
    STD_TORCH_CHECK(occupancy.size(first + a) <= kMaxResolution, "occupancy has more than 2^18 cells on an axis");
  Arguments m;
  m.origins = data<float>(origins);
  m.directions = data<float>(directions);
  m.near = data<float>(near);
  m.far = data<float>(far);
  m.jitter = jitter.has_value() ? data<float>(*jitter) : nullptr;
  m.occupancy = reinterpret_cast<const uint8_t*>(data<bool>(occupancy));
  m.packing = 0;
  m.bins = bins.has_value() ? data<int32_t>(*bins) : nullptr;
  m.n_bins = bins.has_value() ? int(occupancy.size(0)) : 1;
  m.cells_of_bin = occupancy.numel() / m.n_bins;
  m.aabb = data<float>(aabb);
  m.n_rays = origins.size(0);
  m.levels = int(occupancy.size(first));
  for (int a = 0; a < 3; ++a) {
    m.resolution[a] = int(occupancy.size(first + 1 + a));
    m.half_resolution[a] = 0.5f * float(m.resolution[a]);
    m.cell_size[a] = 1.0f / m.half_resolution[a];
  }
  m.step_size = step_size;
  m.cone_angle = cone_angle;
  m.log_growth = std::log1p(cone_angle);
  m.per_step = 1.0 / m.step_size;
  m.per_log_growth = 1.0 / m.log_growth;
  return m;
}

// The samples' places in the lists, and the lists.
struct Samples {
  const int32_t* offsets;  // [R + 1]
  int64_t n;

  float* t_starts;       // [N]
  float* t_ends;         // [N]
  int32_t* ray_indices;  // [N]
};

// What march_count leaves for march_write: the number of each ray's samples, and what the device's launchers need in order
// not to march twice.
struct Count {
  Tensor counts;  // [R]
  Tensor plan;    // [Backend::plan_size(R)]
};

// Backend, in place of one launcher, because march_pack needs several: count(like, arguments, counts, plan), write(like,
// arguments, counts, plan, samples) and run_pack, which fill every entry of their results, and plan_size. `like` says on which
// device.
template <typename Backend>
Count count_samples(const Tensor& like, const Arguments& m) {
  Count c{empty(like, {m.n_rays}, ScalarType::Int), empty(like, {Backend::plan_size(m.n_rays)}, ScalarType::Int)};
  Backend::count(like, m, mutable_data<int32_t>(c.counts), mutable_data<int32_t>(c.plan));
  return c;
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor> write_samples(
    const Tensor& like, const Arguments& m, const Count& c, const Tensor& offsets, int64_t n) {
  Tensor t_starts = empty(like, {n}, ScalarType::Float);
  Tensor t_ends = empty(like, {n}, ScalarType::Float);
  Tensor ray_indices = empty(like, {n}, ScalarType::Int);
  Backend::write(
      like, m, data<int32_t>(c.counts), data<int32_t>(c.plan),
      {data<int32_t>(offsets), n, mutable_data<float>(t_starts), mutable_data<float>(t_ends),
       mutable_data<int32_t>(ray_indices)});
  return {t_starts, t_ends, ray_indices};
}

template <typename Backend>
std::tuple<Tensor, Tensor> march_count(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
    const std::optional<Tensor>& jitter, const Tensor& occupancy, const Tensor& aabb, double step_size, double cone_angle,
    const std::optional<Tensor>& bins) {
  const Arguments m = make_arguments(origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle, bins);
  const Count c = count_samples<Backend>(origins, m);
  return {c.counts, c.plan};
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor> march_write(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
    const std::optional<Tensor>& jitter, const Tensor& occupancy, const Tensor& aabb, double step_size, double cone_angle,
    const std::optional<Tensor>& bins, const Tensor& counts, const Tensor& plan, const Tensor& offsets, int64_t n) {
  const Arguments m = make_arguments(origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle, bins);
  check_int(counts, "counts");
  check_int(plan, "plan");
  check_int(offsets, "offsets");
  STD_TORCH_CHECK(
      counts.numel() == m.n_rays && plan.numel() == Backend::plan_size(m.n_rays), "counts and plan must be march_count's");
  return write_samples<Backend>(origins, m, {counts, plan}, offsets, n);
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> march_pack(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
    const std::optional<Tensor>& jitter, const Tensor& occupancy, const Tensor& aabb, double step_size, double cone_angle,
    const std::optional<Tensor>& bins, int64_t capacity) {
  const Arguments m = make_arguments(origins, directions, near, far, jitter, occupancy, aabb, step_size, cone_angle, bins);
  const Count c = count_samples<Backend>(origins, m);
  const auto [offsets, kept] = pack::packed<Backend::run_pack>(c.counts, std::nullopt, capacity);
  const auto [t_starts, t_ends, ray_indices] = write_samples<Backend>(origins, m, c, offsets, capacity);
  return {t_starts, t_ends, ray_indices, offsets, kept};
}

}  // namespace lightning_nerf::march
