// Arguments and results of the visibility ops, the same for both launchers.
#pragma once
#include "pack.h"
#include "stable.h"
#include "visibility.cuh"

namespace lightning_nerf::visibility {

inline Samples make_samples(
    const Tensor& densities, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets, double early_stop_eps,
    const Tensor& alpha_thre, int64_t first, int64_t last) {
  check_float(densities, "densities");
  check_float(t_starts, "t_starts");
  check_float(t_ends, "t_ends");
  check_int(offsets, "offsets");
  check_float(alpha_thre, "alpha_thre");
  STD_TORCH_CHECK(alpha_thre.numel() == 1, "alpha_thre must hold one number");
  return {
      data<float>(densities),
      data<float>(t_starts),
      data<float>(t_ends),
      data<int32_t>(offsets),
      data<float>(alpha_thre),
      offsets.size(0) - 1,
      std::log(early_stop_eps),
      first,
      last};
}

// The launchers fill every entry of the results; `like` says on which device.
using Count = void(const Tensor& like, const Samples&, int32_t* counts);
using Write = void(const Tensor& like, const Samples&, const int32_t* new_offsets, int64_t n, const Kept&);

template <Count* count>
Tensor count_samples(const Tensor& like, const Samples& s) {
  Tensor counts = empty(like, {s.n_rays}, ScalarType::Int);
  count(like, s, mutable_data<int32_t>(counts));
  return counts;
}

template <Write* write>
std::tuple<Tensor, Tensor, Tensor, Tensor> write_samples(
    const Tensor& like, const Samples& s, const Tensor& new_offsets, int64_t n) {
  Tensor t_starts = empty(like, {n}, ScalarType::Float);
  Tensor t_ends = empty(like, {n}, ScalarType::Float);
  Tensor ray_indices = empty(like, {n}, ScalarType::Int);
  Tensor sources = empty(like, {n}, ScalarType::Int);
  write(
      like, s, data<int32_t>(new_offsets), n,
      {mutable_data<float>(t_starts), mutable_data<float>(t_ends), mutable_data<int32_t>(ray_indices),
       mutable_data<int32_t>(sources)});
  return {t_starts, t_ends, ray_indices, sources};
}

template <Count* count>
Tensor visibility_count(
    const Tensor& densities, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets, double early_stop_eps,
    const Tensor& alpha_thre, int64_t first, int64_t last) {
  return count_samples<count>(
      densities, make_samples(densities, t_starts, t_ends, offsets, early_stop_eps, alpha_thre, first, last));
}

template <Write* write>
std::tuple<Tensor, Tensor, Tensor, Tensor> visibility_write(
    const Tensor& densities, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets, double early_stop_eps,
    const Tensor& alpha_thre, int64_t first, int64_t last, const Tensor& new_offsets, int64_t n) {
  const Samples s = make_samples(densities, t_starts, t_ends, offsets, early_stop_eps, alpha_thre, first, last);
  check_int(new_offsets, "new_offsets");
  return write_samples<write>(densities, s, new_offsets, n);
}

template <Count* count, pack::Run* run_pack, Write* write>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> visibility_pack(
    const Tensor& densities, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets, const Tensor& kept,
    double early_stop_eps, const Tensor& alpha_thre, int64_t first, int64_t last, int64_t capacity) {
  check(kept, ScalarType::Bool, "kept");
  const Samples s = make_samples(densities, t_starts, t_ends, offsets, early_stop_eps, alpha_thre, first, last);
  const Tensor counts = count_samples<count>(densities, s);
  const auto [new_offsets, new_kept] = pack::packed<run_pack>(counts, kept, capacity);
  const auto [new_starts, new_ends, ray_indices, sources] = write_samples<write>(densities, s, new_offsets, capacity);
  return {new_starts, new_ends, ray_indices, new_offsets, new_kept, sources};
}

}  // namespace lightning_nerf::visibility
