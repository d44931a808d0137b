// Arguments of the fused Instant-NGP ops. These run on CUDA alone: the op functions of the .cu files allocate and launch
// themselves, because no second launcher would share them.
#pragma once
#include "instant_ngp.cuh"
#include "persistent.cuh"

namespace lightning_nerf::instant_ngp {

// Where each weight ends in the flat list of all.
constexpr int kEndDensity1 = kHidden * kEncoded;
constexpr int kEndDensity2 = kEndDensity1 + kGeometry * kHidden;
constexpr int kEndColor1 = kEndDensity2 + kHidden * kColorInput;
constexpr int kEndColor2 = kEndColor1 + kHidden * kHidden;
constexpr int kAllParameters = kEndColor2 + 3 * kHidden;

inline const float* weight(const Tensor& w, int64_t rows, int64_t columns, const char* name) {
  check_float(w, name);
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(w.data_ptr()) % 16 == 0, name, " must be aligned to 16 bytes");
  STD_TORCH_CHECK(w.dim() == 2 && w.size(0) == rows && w.size(1) == columns, name, " must be [", rows, ", ", columns, "]");
  return data<float>(w);
}

inline FieldWeights density_weights(const Tensor& d1, const Tensor& d2) {
  return {weight(d1, kHidden, kEncoded, "density1"), weight(d2, kGeometry, kHidden, "density2"), nullptr, nullptr, nullptr};
}

inline FieldWeights field_weights(
    const Tensor& d1, const Tensor& d2, const Tensor& c1, const Tensor& c2, const Tensor& c3) {
  FieldWeights w = density_weights(d1, d2);
  w.color1 = weight(c1, kHidden, kColorInput, "color1");
  w.color2 = weight(c2, kHidden, kHidden, "color2");
  w.color3 = weight(c3, 3, kHidden, "color3");
  return w;
}

struct Encoding {
  const __half* table;    // [n_rows, F]
  const int32_t* levels;  // [n_levels, 3]
  int64_t n_rows;
  int n_levels, n_features;
};

inline Encoding encoding(const Tensor& table, const Tensor& levels) {
  check(table, ScalarType::Half, "working");
  check_int(levels, "levels");
  const Encoding e{
      reinterpret_cast<const __half*>(table.data_ptr()), data<int32_t>(levels), table.size(0), int(levels.size(0)),
      int(table.size(1))};
  STD_TORCH_CHECK(
      (e.n_features == 2 || e.n_features == 4) && e.n_features * e.n_levels == kEncoded,
      "expected 16 levels of 2 features or 8 of 4");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(e.table) % 8 == 0, "working must be aligned to 8 bytes");
  return e;
}

// body(F, T()) for the table's features and the operands' type.
template <typename Body>
void for_features_and_type(int n_features, bool bfloat16, const Body& body) {
  const auto with_features = [&](auto f) {
    if (bfloat16) body(f, __nv_bfloat16());
    else body(f, __half());
  };
  if (n_features == 2) with_features(std::integral_constant<int, 2>());
  else with_features(std::integral_constant<int, 4>());
}

}  // namespace lightning_nerf::instant_ngp
