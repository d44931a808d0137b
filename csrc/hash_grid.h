// Arguments of the hash_grid op, the same for both launchers.
#pragma once
#include "stable.h"

namespace lightning_nerf {

inline bool is_table_type(ScalarType t) {
  return t == ScalarType::Float || t == ScalarType::Half || t == ScalarType::BFloat16;
}

// Returns the table that is read: `working` where there is one.
inline const Tensor& check_hash_grid(
    const Tensor& positions, const Tensor& table, const Tensor& levels, const std::optional<Tensor>& working) {
  check_float(positions, "positions");
  check(table, table.scalar_type(), "table");
  check_int(levels, "levels");
  STD_TORCH_CHECK(is_table_type(table.scalar_type()), "table: expected float32, float16 or bfloat16");
  if (!working.has_value()) return table;
  check(*working, working->scalar_type(), "working");
  STD_TORCH_CHECK(is_table_type(working->scalar_type()), "working: expected float32, float16 or bfloat16");
  const bool fits = working->size(0) == table.size(0) && working->size(1) == table.size(1);
  STD_TORCH_CHECK(fits, "working: expected table's shape");
  return *working;
}

inline void check_grad(const Tensor& grad, const Tensor& positions, const Tensor& table, const Tensor& levels) {
  check(grad, grad.scalar_type(), "grad");
  STD_TORCH_CHECK(is_table_type(grad.scalar_type()), "grad: expected float32, float16 or bfloat16");
  STD_TORCH_CHECK(grad.size(0) == positions.size(0) && grad.size(1) == levels.size(0) * table.size(1),
                  "grad: expected shape [N, L * F]");
}

}  // namespace lightning_nerf
