// A perceptron of any shape for 16 rows at a time, by one warp: rows of any float type and width to and from the fragments
// of warp_mlp.cuh, and its weights in shared memory.
//
// Thread t of a row loads and stores the four neighboring columns 4 t to 4 t + 3 of a block of 16, in one access. In a
// fragment its columns are 2 t, 2 t + 1, 2 t + 8 and 2 t + 9: so column c of memory is column operand_position(c) of the
// fragment, and the weights' rows and columns are shared in that order.
#pragma once
#include <type_traits>

#include "warp_mlp.cuh"

namespace lightning_nerf::fused_mlp {

constexpr int kMaxLayers = 5;  // matrices: one more than hidden layers

enum class Number { Float, Half, BFloat16 };

// A matrix [N, width], row by row.
struct Rows {
  void* data;
  int width;
  Number type;
  bool vector;  // four neighboring numbers, the first's column a multiple of four, are one access
  bool direct;  // of the operands' type, and eight of them are one access of 16 bytes
};

__host__ __device__ constexpr int round_up_to_16(int columns) { return (columns + 15) / 16 * 16; }

__host__ __device__ constexpr int operand_position(int column) {
  const int t = column % 16 / 4, part = column % 4;
  return column / 16 * 16 + (part < 2 ? 2 * t + part : 8 + 2 * t + part - 2);
}

__device__ __forceinline__ float load_number(const Rows& m, int64_t at) {
  if (m.type == Number::Float) return static_cast<const float*>(m.data)[at];
  if (m.type == Number::Half) return __half2float(static_cast<const __half*>(m.data)[at]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(m.data)[at]);
}

__device__ __forceinline__ void store_number(const Rows& m, int64_t at, float value) {
  if (m.type == Number::Float) static_cast<float*>(m.data)[at] = value;
  else if (m.type == Number::Half) static_cast<__half*>(m.data)[at] = __half(value);
  else static_cast<__nv_bfloat16*>(m.data)[at] = __nv_bfloat16(value);
}

// Columns `column` to `column` + 3 of a row; 0 beyond the width. `column` is a multiple of four.
__device__ __forceinline__ float4 load_four(const Rows& m, int64_t row, int column) {
  float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (column >= m.width) return value;
  const int64_t at = row * m.width + column;
  if (!m.vector) {
    value.x = load_number(m, at);
    if (column + 1 < m.width) value.y = load_number(m, at + 1);
    if (column + 2 < m.width) value.z = load_number(m, at + 2);
    if (column + 3 < m.width) value.w = load_number(m, at + 3);
    return value;
  }
  if (m.type == Number::Float) return *reinterpret_cast<const float4*>(static_cast<const float*>(m.data) + at);
  const uint2 pairs = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(m.data) + at);
  const bool half = m.type == Number::Half;
  const float2 low = half ? unpack_pair<__half>(pairs.x) : unpack_pair<__nv_bfloat16>(pairs.x);
  const float2 high = half ? unpack_pair<__half>(pairs.y) : unpack_pair<__nv_bfloat16>(pairs.y);
  return make_float4(low.x, low.y, high.x, high.y);
}

__device__ __forceinline__ void store_four(const Rows& m, int64_t row, int column, const float4& value) {
  if (column >= m.width) return;
  const int64_t at = row * m.width + column;
  if (!m.vector) {
    store_number(m, at, value.x);
    if (column + 1 < m.width) store_number(m, at + 1, value.y);
    if (column + 2 < m.width) store_number(m, at + 2, value.z);
    if (column + 3 < m.width) store_number(m, at + 3, value.w);
  } else if (m.type == Number::Float) {
    *reinterpret_cast<float4*>(static_cast<float*>(m.data) + at) = value;
  } else {
    const bool half = m.type == Number::Half;
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(m.data) + at) = make_uint2(
        half ? pack_pair<__half>(value.x, value.y) : pack_pair<__nv_bfloat16>(value.x, value.y),
        half ? pack_pair<__half>(value.z, value.w) : pack_pair<__nv_bfloat16>(value.z, value.w));
  }
}

// Block `k` of 16 columns of the rows from `first` on; rows from n on are 0.
template <typename T>
__device__ __forceinline__ void load_rows(Operand<16>& out, const Rows& m, int64_t first, int64_t n, int k) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t row = first + g + 8 * r;
    const float4 value = row < n ? load_four(m, row, 16 * k + 4 * t) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    out.block[0][r] = pack_pair<T>(value.x, value.y);
    out.block[0][2 + r] = pack_pair<T>(value.z, value.w);
  }
}

__device__ __forceinline__ void store_rows(const Rows& m, int64_t first, int64_t n, int k, const Accumulator<16>& in) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t row = first + g + 8 * r;
    if (row < n)
      store_four(
          m, row, 16 * k + 4 * t,
          make_float4(in.tile[0][2 * r], in.tile[0][2 * r + 1], in.tile[1][2 * r], in.tile[1][2 * r + 1]));
  }
}

// The same for all columns of an operand, to [N, W] of the operands' type.
template <int W, typename T>
__device__ __forceinline__ void store_rows(T* out, int64_t first, int64_t n, const Operand<W>& in) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t row = first + g + 8 * r;
    if (row >= n) continue;
#pragma unroll
    for (int k = 0; k < W / 16; ++k)
      *reinterpret_cast<uint2*>(out + row * W + 16 * k + 4 * t) = make_uint2(in.block[k][r], in.block[k][2 + r]);
  }
}

struct Layers {
  Rows weight[kMaxLayers];  // float32 [outputs, inputs]
  int count;                // 2 to kMaxLayers
  int n_outputs;
};

// The weights in shared memory, in the operands' type and order. The first layer's columns come in blocks of 16, each a
// matrix [W, 16], so that its width need not be known to the compiler; the last layer's rows are padded to 16.
template <int W, typename T>
struct SharedLayers {
  static constexpr int kFirstBlock = W * padded(16);
  static constexpr int kHidden = W * padded(W);
  static constexpr int kLastBlock = 16 * padded(W);

  const T* first;
  const T* hidden;
  const T* last;
  int input_blocks, hidden_count, output_blocks;

  __host__ __device__ static int size(const Layers& layers) {
    return round_up_to_16(layers.weight[0].width) / 16 * kFirstBlock + (layers.count - 2) * kHidden +
           round_up_to_16(layers.n_outputs) / 16 * kLastBlock;
  }

  // By the whole block; complete after a barrier.
  __device__ SharedLayers(const Layers& layers, T* shared)
      : first(shared), input_blocks(round_up_to_16(layers.weight[0].width) / 16), hidden_count(layers.count - 2),
        output_blocks(round_up_to_16(layers.n_outputs) / 16) {
    share(layers.weight[0], W, W, 16 * input_blocks, shared, padded(16), kFirstBlock);
    shared += input_blocks * kFirstBlock;
    hidden = shared;
    for (int i = 0; i < hidden_count; ++i, shared += kHidden) share(layers.weight[1 + i], W, W, W, shared, padded(W), 16);
    last = shared;
    share(layers.weight[layers.count - 1], layers.n_outputs, 16 * output_blocks, W, shared, padded(W), 16);
  }

 private:
  // weight [n, *] to [rows, columns]; blocks of 16 columns lie `block_step` apart.
  __device__ static void share(const Rows& weight, int n, int rows, int columns, T* shared, int stride, int block_step) {
    const int per_row = columns / 4;
#pragma unroll 4
    for (int i = threadIdx.x; i < rows * per_row; i += blockDim.x) {
      const int row = i / per_row, column = 4 * (i - row * per_row);
      const float4 value = row < n ? load_four(weight, row, column) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      T* at = shared + operand_position(row) * stride + column / 16 * block_step + operand_position(column % 16);
      *reinterpret_cast<uint32_t*>(at) = pack_pair<T>(value.x, value.y);
      *reinterpret_cast<uint32_t*>(at + 8) = pack_pair<T>(value.z, value.w);
    }
  }
};

// out = x W_1^T for the 16 rows from `first` on.
template <int W, typename T>
__device__ __forceinline__ void first_layer(
    Accumulator<W>& out, const Rows& x, int64_t first, int64_t n, const SharedLayers<W, T>& net) {
  out.clear();
  Operand<16> next;
  load_rows<T>(next, x, first, n, 0);
#pragma unroll 1
  for (int k = 0; k < net.input_blocks; ++k) {
    const Operand<16> in = next;
    if (k + 1 < net.input_blocks) load_rows<T>(next, x, first, n, k + 1);
    multiply(out, in, net.first + k * SharedLayers<W, T>::kFirstBlock);
  }
}

// Which of a thread's numbers in an operand are positive, a bit each.
template <int W>
using Signs = std::conditional_t<(W > 64), uint64_t, uint32_t>;

template <typename T, int W>
__device__ __forceinline__ Signs<W> positive(const Operand<W>& x) {
  Signs<W> bits = 0;
#pragma unroll
  for (int k = 0; k < W / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 value = unpack_pair<T>(x.block[k][i]);
      bits |= Signs<W>(value.x > 0.0f) << (8 * k + 2 * i) | Signs<W>(value.y > 0.0f) << (8 * k + 2 * i + 1);
    }
  return bits;
}

// Keeps of `grad` what passed the ReLU.
template <typename T, int W>
__device__ __forceinline__ void mask_to_operand(Operand<W>& out, const Accumulator<W>& grad, Signs<W> passed) {
#pragma unroll
  for (int k = 0; k < W / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float (&c)[4] = grad.tile[2 * k + i / 2];
      const bool low = passed >> (8 * k + 2 * i) & 1, high = passed >> (8 * k + 2 * i + 1) & 1;
      out.block[k][i] = pack_pair<T>(low ? c[2 * (i & 1)] : 0.0f, high ? c[2 * (i & 1) + 1] : 0.0f);
    }
}

}  // namespace lightning_nerf::fused_mlp
