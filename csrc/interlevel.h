// Arguments and results of the interlevel op, the same for both launchers.
#pragma once
#include "interlevel.cuh"
#include "stable.h"

namespace lightning_nerf::interlevel {

// run fills every entry of excess [K] and slopes [K, m]; `like` says on which device.
template <void (*run)(const Tensor& like, const Rows&, float* excess, float* slopes)>
std::tuple<Tensor, Tensor> interlevel(
    const Tensor& edges, const Tensor& weights, const Tensor& coarse_edges, const Tensor& coarse_weights,
    const Tensor& counting, double width) {
  for (const Tensor& each : {edges, weights, coarse_edges, coarse_weights}) {
    check_float(each, "edges and weights");
    STD_TORCH_CHECK(each.dim() == 2, "edges and weights must be rows");
  }
  check(counting, ScalarType::Bool, "counting");
  const int64_t k = weights.size(0), n = weights.size(1), m = coarse_weights.size(1);
  STD_TORCH_CHECK(edges.size(0) == k && edges.size(1) == n + 1, "edges must be [K, n + 1]");
  STD_TORCH_CHECK(coarse_edges.size(0) == k && coarse_edges.size(1) == m + 1, "coarse_edges must be [K, m + 1]");
  STD_TORCH_CHECK(coarse_weights.size(0) == k, "coarse_weights must be [K, m]");
  STD_TORCH_CHECK(counting.numel() == k, "counting must be [K]");
  STD_TORCH_CHECK(width >= 0.0, "width must not be negative");
  Tensor excess = empty(edges, {k}, ScalarType::Float);
  Tensor slopes = empty(edges, {k, m}, ScalarType::Float);
  const Rows rows = {
      data<float>(edges),
      data<float>(weights),
      data<float>(coarse_edges),
      data<float>(coarse_weights),
      data<bool>(counting),
      k,
      n,
      m,
      width};
  run(edges, rows, mutable_data<float>(excess), mutable_data<float>(slopes));
  return {excess, slopes};
}

}  // namespace lightning_nerf::interlevel
