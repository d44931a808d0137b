// Arguments and results of the scan ops, the same for both launchers.
#pragma once
#include "scan.cuh"
#include "stable.h"

namespace lightning_nerf::scan {

inline Segments make_segments(const Tensor& values, const Tensor& segments) {
  Segments s{Layout::kOffsets, nullptr, nullptr, nullptr, values.size(0), 0};
  STD_TORCH_CHECK(segments.is_contiguous(), "segments must be contiguous");
  if (segments.scalar_type() == ScalarType::Int) {
    STD_TORCH_CHECK(segments.dim() == 1 && segments.size(0) > 0, "offsets must be [R + 1]");
    s.offsets = data<int32_t>(segments);
    s.n_segments = segments.size(0) - 1;
  } else if (segments.dim() == 2) {
    check(segments, ScalarType::Long, "packed_info");
    STD_TORCH_CHECK(segments.size(1) == 2, "packed_info must be [R, 2]");
    s.layout = Layout::kPackedInfo;
    s.packed_info = data<int64_t>(segments);
    s.n_segments = segments.size(0);
  } else {
    check(segments, ScalarType::Long, "keys");
    STD_TORCH_CHECK(segments.dim() == 1 && segments.size(0) == s.n, "keys must be [N]");
    s.layout = Layout::kKeys;
    s.keys = data<int64_t>(segments);
  }
  return s;
}

// Backend: `Real`, and `run(like, scan, segments, reverse)`, which fills every entry of scan.out.
template <typename Backend>
Tensor scan(const Tensor& values, const Tensor& segments, bool product, bool exclusive, bool reverse) {
  check_float(values, "values");
  STD_TORCH_CHECK(values.dim() == 1, "values must be [N]");
  const Segments s = make_segments(values, segments);
  Tensor out = empty(values, {s.n}, ScalarType::Float);
  using Real = typename Backend::Real;
  if (product) Backend::run(values, Scan<Real, true>{data<float>(values), exclusive, mutable_data<float>(out)}, s, reverse);
  else Backend::run(values, Scan<Real, false>{data<float>(values), exclusive, mutable_data<float>(out)}, s, reverse);
  return out;
}

template <typename Backend>
Tensor scan_product_backward(
    const Tensor& grad, const Tensor& values, const Tensor& products, const Tensor& segments, bool exclusive,
    bool reverse) {
  check_float(grad, "grad");
  check_float(values, "values");
  check_float(products, "products");
  const Segments s = make_segments(values, segments);
  STD_TORCH_CHECK(grad.numel() == s.n && products.numel() == s.n && values.dim() == 1, "entry counts differ");
  Tensor out = empty(values, {s.n}, ScalarType::Float);
  const ScanProductBackward<typename Backend::Real> backward{
      data<float>(grad), data<float>(values), data<float>(products), exclusive, mutable_data<float>(out)};
  Backend::run(values, backward, s, !reverse);
  return out;
}

}  // namespace lightning_nerf::scan
