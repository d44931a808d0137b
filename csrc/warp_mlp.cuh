// A small perceptron on tensor cores: a warp takes 16 rows through its layers without leaving registers.
//
// Every product is mma.m16n8k16 with 16-bit operands and float accumulators. The registers that hold 16 columns of a result
// are, once rounded to 16 bits, the left operand of the next product: so activations are chained, layer by layer, with no
// exchange. Right operands (weights) come from shared memory through ldmatrix, plain for a layer and transposed for its
// input gradient. Widths are multiples of 16.
//
// In a fragment, lane 4 g + t holds rows g and g + 8 and, of every 8 columns, columns 2 t and 2 t + 1.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "host_device.cuh"

namespace lightning_nerf {

constexpr int kTileRows = 16;

// A shared row of `columns` 16-bit numbers, padded so that eight rows of an 8 x 8 tile lie in different banks.
__host__ __device__ constexpr int padded(int columns) { return columns + 8; }

__device__ __forceinline__ uint32_t pack_pair(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t pack_pair(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <typename T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  return pack_pair(low, high, T());
}

__device__ __forceinline__ float2 unpack_pair(uint32_t pair, __nv_bfloat16) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}
__device__ __forceinline__ float2 unpack_pair(uint32_t pair, __half) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}
template <typename T>
__device__ __forceinline__ float2 unpack_pair(uint32_t pair) {
  return unpack_pair(pair, T());
}

__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 tiles; lanes 8 i to 8 i + 7 give the addresses of tile i's rows.
__device__ __forceinline__ void load_tiles(uint32_t (&r)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_tiles_transposed(uint32_t (&r)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// 16 rows as a left operand: Columns / 16 blocks of 16 columns.
template <int Columns>
struct Operand {
  uint32_t block[Columns / 16][4];
};

// 16 rows of a result: Columns / 8 tiles of 8 columns.
template <int Columns>
struct Accumulator {
  float tile[Columns / 8][4];
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int j = 0; j < Columns / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) tile[j][i] = 0.0f;
  }
};

// The whole block copies weights [n, k] float32 into shared 16-bit rows [rows, padded(k)]; rows from n on are 0. Several
// loads of 16 bytes in flight a thread: every block waits for this before it does anything else.
template <typename T>
__device__ __forceinline__ void share_weights(const float* __restrict__ weights, int n, int k, int rows, T* shared) {
#pragma unroll 4
  for (int i = 4 * threadIdx.x; i < rows * k; i += 4 * blockDim.x) {
    const int row = i / k, column = i - row * k;
    const float4 w = row < n ? *reinterpret_cast<const float4*>(weights + i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    *reinterpret_cast<uint2*>(shared + row * padded(k) + column) =
        make_uint2(pack_pair<T>(w.x, w.y), pack_pair<T>(w.z, w.w));
  }
}

// out += in * W^T for weights [N, K] in shared memory.
template <int K, int N, typename T>
__device__ __forceinline__ void multiply(Accumulator<N>& out, const Operand<K>& in, const T* weights) {
  const int lane = threadIdx.x & 31;
  // Tiles of two groups of 8 outputs by two groups of 8 inputs.
  const T* row = weights + ((lane & 7) + 8 * (lane >> 4)) * padded(K) + 8 * ((lane >> 3) & 1);
#pragma unroll
  for (int n = 0; n < N / 16; ++n) {
#pragma unroll
    for (int k = 0; k < K / 16; ++k) {
      uint32_t b[4];
      load_tiles(b, row + 16 * n * padded(K) + 16 * k);
      mma(out.tile[2 * n], in.block[k], b[0], b[1], T());
      mma(out.tile[2 * n + 1], in.block[k], b[2], b[3], T());
    }
  }
}

// out += in * W[:, First : First + K] for weights [N, Row] in shared memory: the gradient of inputs First to First + K.
template <int N, int K, int Row, int First, typename T>
__device__ __forceinline__ void multiply_transposed(Accumulator<K>& out, const Operand<N>& in, const T* weights) {
  const int lane = threadIdx.x & 31;
  const T* row = weights + ((lane & 7) + 8 * ((lane >> 3) & 1)) * padded(Row) + First + 8 * (lane >> 4);
#pragma unroll
  for (int k = 0; k < K / 16; ++k) {
#pragma unroll
    for (int n = 0; n < N / 16; ++n) {
      uint32_t b[4];
      load_tiles_transposed(b, row + 16 * n * padded(Row) + 16 * k);
      mma(out.tile[2 * k], in.block[n], b[0], b[1], T());
      mma(out.tile[2 * k + 1], in.block[n], b[2], b[3], T());
    }
  }
}

template <typename T, int N>
__device__ __forceinline__ void to_operand(Operand<N>& out, const Accumulator<N>& in) {
#pragma unroll
  for (int k = 0; k < N / 16; ++k)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float (&c)[4] = in.tile[2 * k + half];
      out.block[k][2 * half] = pack_pair<T>(c[0], c[1]);
      out.block[k][2 * half + 1] = pack_pair<T>(c[2], c[3]);
    }
}

// NaN stays NaN, as in torch.relu.
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

template <typename T, int N>
__device__ __forceinline__ void relu_to_operand(Operand<N>& out, const Accumulator<N>& in) {
#pragma unroll
  for (int k = 0; k < N / 16; ++k)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float (&c)[4] = in.tile[2 * k + half];
      out.block[k][2 * half] = pack_pair<T>(relu(c[0]), relu(c[1]));
      out.block[k][2 * half + 1] = pack_pair<T>(relu(c[2]), relu(c[3]));
    }
}

// 16 rows of 16 columns from shared memory as a block of a left operand.
template <typename T>
__device__ __forceinline__ void load_block(uint32_t (&block)[4], const T* rows, int stride) {
  const int lane = threadIdx.x & 31;
  load_tiles(block, rows + (lane & 15) * stride + 8 * (lane >> 4));
}

template <int K, typename T>
__device__ __forceinline__ void load_operand(Operand<K>& out, const T* rows, int stride) {
#pragma unroll
  for (int k = 0; k < K / 16; ++k) load_block(out.block[k], rows + 16 * k, stride);
}

template <int K, typename T>
__device__ __forceinline__ void store_operand(T* rows, int stride, const Operand<K>& in) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  uint32_t* upper = reinterpret_cast<uint32_t*>(rows + g * stride + 2 * t);
  uint32_t* lower = reinterpret_cast<uint32_t*>(rows + (g + 8) * stride + 2 * t);
#pragma unroll
  for (int k = 0; k < K / 16; ++k) {
    upper[8 * k] = in.block[k][0];
    lower[8 * k] = in.block[k][1];
    upper[8 * k + 4] = in.block[k][2];
    lower[8 * k + 4] = in.block[k][3];
  }
}

// Tiles of a weight's gradient, [16 outputs, 8 inputs] each:
// sum[i][j] += grad[:, 16 i : 16 i + 16]^T * in[:, 8 j : 8 j + 8] over `Rows` shared rows. One or two tiles of inputs.
template <int Rows, int Outputs, int Inputs, typename T>
__device__ __forceinline__ void accumulate_weight_gradient(
    float (&sum)[Outputs][Inputs][4], const T* grad, int grad_stride, const T* in, int in_stride) {
  static_assert(Inputs == 1 || Inputs == 2, "four 8 x 8 tiles a load: 32 rows of 8 inputs, or 16 of 16");
  const int lane = threadIdx.x & 31;
  const T* left = grad + ((lane & 7) + 8 * (lane >> 4)) * grad_stride + 8 * ((lane >> 3) & 1);
  const T* right = Inputs == 1 ? in + lane * in_stride : in + (lane & 15) * in_stride + 8 * (lane >> 4);
#pragma unroll
  for (int r = 0; r < Rows; r += 32) {
    uint32_t a[4], b[4];
    load_tiles_transposed(b, right + r * in_stride);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (Inputs == 2 && half == 1) load_tiles_transposed(b, right + (r + 16) * in_stride);
#pragma unroll
      for (int i = 0; i < Outputs; ++i) {
        load_tiles_transposed(a, left + (r + 16 * half) * grad_stride + 16 * i);
        if constexpr (Inputs == 1) {
          mma(sum[i][0], a, b[2 * half], b[2 * half + 1], T());
        } else {
          mma(sum[i][0], a, b[0], b[1], T());
          mma(sum[i][1], a, b[2], b[3], T());
        }
      }
    }
  }
}

}  // namespace lightning_nerf
