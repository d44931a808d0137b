// From rows as they are given, encoded on the way, to blocks that the chains of wide perceptrons read.
#pragma once
#include "wide_mlp.cuh"
#include "wide_mlp.h"

namespace lightning_nerf::wide_mlp {

namespace {

// One input, as it is given: rows [n, dims], or rows of fewer that `index` names; encoded on the way where there are
// frequencies, in the order of the op `frequency`.
struct Input {
  const float* x;
  const int* index;
  int dims, columns, frequencies;
  bool include_input;
  float scale;
};

// Column `column` of the encoding of a row. kDims > 0: the number of coordinates, known to the compiler.
template <int kDims>
__device__ inline float input_value(const Input& input, const float* x, int column) {
  if (input.frequencies == 0) return x[column];
  const int dims = kDims > 0 ? kDims : input.dims, waves = input.frequencies * dims;
  if (input.include_input) {
    if (column < dims) return x[column];
    column -= dims;
  }
  const bool sine = column < waves;
  if (!sine) column -= waves;
  const int k = column / dims;
  const float angle = input.scale * x[column - k * dims] * __uint_as_float((127u + k) << 23);
  // To within half a turn, in two steps of which the first is exact; what is then lost is less than a half precision shows.
  const float turns = rintf(angle * 0.15915494309189535f);
  const float rest = fmaf(turns, -1.9353071795864769e-3f, fmaf(turns, -6.28125f, angle));
  return sine ? __sinf(rest) : __cosf(rest);
}

// An input as blocks in groups, rounded: a thread writes 8 columns of a row, a block of threads `rows` rows. Columns of
// padding are 0, and so are rows that do not count in a pair of groups that has rows that do.
template <typename T, int kDims>
__global__ void pack_rows_kernel(
    const Input input, int64_t n, const int* count, T* blocks, int first_block, int n_blocks, int rows) {
  if (count != nullptr) n = min(n, int64_t(max(0, *count)));
  constexpr int kPair = kGroups * kGroupRows;
  const int64_t end = (n + kPair - 1) / kPair * kPair;  // the chain reads no further
  const int mine = (input.columns + 63) / 64 * 8;       // threads of a row
  const int in_block = int(threadIdx.x) / mine, piece = int(threadIdx.x) % mine;
  const int64_t row = int64_t(blockIdx.x) * rows + in_block;
  if (in_block >= rows || row >= end) return;
  alignas(16) T values[8];
  const float* const x =
      row < n ? input.x + (input.index == nullptr ? row : int64_t(input.index[row])) * input.dims : nullptr;
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const int column = 8 * piece + c;
    values[c] = row < n && column < input.columns ? T(input_value<kDims>(input, x, column)) : T(0.0f);
  }
  T* const block = blocks + ((row / kGroupRows * n_blocks) + first_block + piece / 8) * (kBlockBytes / 2);
  *reinterpret_cast<uint4*>(block + hopper::place_in_block(int(row % kGroupRows), piece % 8 * 8)) =
      *reinterpret_cast<const uint4*>(values);
}

template <typename Body>
void for_type(ScalarType dtype, Body&& body) {
  if (dtype == ScalarType::BFloat16) body(__nv_bfloat16());
  else body(__half());
}

Input input_of(const Tensor& x, const std::optional<Tensor>& index, int64_t frequencies, bool include_input, double scale) {
  const int dims = int(x.size(1));
  const int columns = frequencies == 0 ? dims : dims * int(2 * frequencies + include_input);
  return {data<float>(x), index ? data<int>(*index) : nullptr, dims, columns, int(frequencies), include_input,
          float(scale)};
}

void pack_rows(const Launch& launch, const Input& input, int64_t n, const int* count, Tensor& to, int64_t first_block) {
  const int rows = kThreads / ((input.columns + 63) / 64 * 8);
  const auto pack = [&](auto type, auto dims) {
    using T = decltype(type);
    pack_rows_kernel<T, dims()><<<blocks(to.size(0) * kGroupRows, rows), kThreads, 0, launch.stream>>>(
        input, n, count, static_cast<T*>(to.mutable_data_ptr()), int(first_block), int(to.size(1)), rows);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  };
  for_type(to.scalar_type(), [&](auto type) {
    if (input.dims == 3) pack(type, std::integral_constant<int, 3>());
    else pack(type, std::integral_constant<int, 0>());
  });
}

}  // namespace

}  // namespace lightning_nerf::wide_mlp
