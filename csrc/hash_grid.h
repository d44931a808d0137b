// Arguments and results of the hash_grid ops, the same for both launchers.
#pragma once
#include "hash_grid.cuh"
#include "stable.h"

namespace lightning_nerf::hash_grid {

inline bool is_table_type(ScalarType t) {
  return t == ScalarType::Float || t == ScalarType::Half || t == ScalarType::BFloat16;
}

inline Tensor to_dtype(const Tensor& t, ScalarType dtype) {
  return dtype == t.scalar_type() ? t : torch::stable::to(t, dtype);
}

// Tensors, not their addresses: a launcher makes copies of those that it can't read as they are.
struct Arguments {
  const Tensor& positions;  // [N, D] float32
  const Tensor& rows;       // [n_rows, F] what is read: `working` where there is one, else the table
  const Tensor& levels;     // [n_levels, 3] resolution, offset, size
  int64_t n, dims, n_rows, features, n_levels;
};

inline Arguments make_arguments(
    const Tensor& positions, const Tensor& table, const Tensor& levels, const std::optional<Tensor>& working) {
  check_float(positions, "positions");
  check(table, table.scalar_type(), "table");
  check_int(levels, "levels");
  STD_TORCH_CHECK(is_table_type(table.scalar_type()), "table: expected float32, float16 or bfloat16");
  if (working.has_value()) {
    check(*working, working->scalar_type(), "working");
    STD_TORCH_CHECK(is_table_type(working->scalar_type()), "working: expected float32, float16 or bfloat16");
    const bool fits = working->size(0) == table.size(0) && working->size(1) == table.size(1);
    STD_TORCH_CHECK(fits, "working: expected table's shape");
  }
  return {
      positions,
      working.has_value() ? *working : table,
      levels,
      positions.size(0),
      positions.size(1),
      table.size(0),
      table.size(1),
      levels.size(0)};
}

// body(D, F) with the dimensions and features as compile-time constants.
template <typename Body>
void for_dims_and_features(const Arguments& a, const Body& body) {
  const bool known = for_shape(a.dims, a.features, body);
  STD_TORCH_CHECK(known, "expected 2, 3 or 4 dimensions and 1, 2, 4 or 8 features");
}

// run fills out [N, n_levels F], which has the dtype wanted; `like` says on which device.
template <void (*run)(const Tensor& like, const Arguments&, Tensor& out)>
Tensor hash_grid(
    const Tensor& positions, const Tensor& table, const Tensor& levels, const std::optional<Tensor>& working,
    ScalarType dtype, bool) {
  const Arguments a = make_arguments(positions, table, levels, working);
  STD_TORCH_CHECK(is_table_type(dtype), "dtype: expected float32, float16 or bfloat16");
  Tensor out = empty(positions, {a.n, a.n_levels * a.features}, dtype);
  run(positions, a, out);
  return out;
}

struct Gradients {
  float* positions;    // [N, D], null: not wanted
  float* table;        // [n_rows, F], 0 before; null: not wanted
  bool deterministic;  // the same bits in every run
};

// run fills the gradients that are wanted from grad [N, n_levels F].
template <void (*run)(const Tensor& like, const Arguments&, const Tensor& grad, const Gradients&)>
std::tuple<Tensor, Tensor> hash_grid_backward(
    const Tensor& grad, const Tensor& positions, const Tensor& table, const Tensor& levels,
    const std::optional<Tensor>& working, bool for_positions, bool for_table, bool deterministic) {
  const Arguments a = make_arguments(positions, table, levels, working);
  check(grad, grad.scalar_type(), "grad");
  STD_TORCH_CHECK(is_table_type(grad.scalar_type()), "grad: expected float32, float16 or bfloat16");
  STD_TORCH_CHECK(grad.size(0) == a.n && grad.size(1) == a.n_levels * a.features, "grad: expected shape [N, L * F]");
  Tensor grad_positions =
      for_positions ? empty(positions, {a.n, a.dims}, ScalarType::Float) : empty(positions, {0}, ScalarType::Float);
  Tensor grad_table = for_table ? torch::stable::new_zeros(table, {a.n_rows, a.features}, ScalarType::Float)
                                : empty(table, {0}, ScalarType::Float);
  run(positions, a, grad,
      {for_positions ? mutable_data<float>(grad_positions) : nullptr, for_table ? mutable_data<float>(grad_table) : nullptr,
       deterministic});
  return {grad_positions, to_dtype(grad_table, table.scalar_type())};
}

}  // namespace lightning_nerf::hash_grid
