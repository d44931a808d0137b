// Instant-NGP's field for 16 samples at a time, by one warp: hash encoding gathered straight into the left operand of the
// first layer, both perceptrons on tensor cores, nothing in between in memory.
//
// Fixed shape: 32 encoded features (16 levels of 2 or 8 of 4), density perceptron 32 - 64 - 16, color perceptron
// (16 spherical harmonics + 16 geometry features) - 64 - 64 - 3. Any other shape runs op by op.
#pragma once
#include "hash_grid.cuh"
#include "spherical_harmonics.cuh"
#include "warp_mlp.cuh"

namespace lightning_nerf::instant_ngp {

using hash_grid::Cell;
using hash_grid::clamp_to_unit;
using hash_grid::corner_row;
using hash_grid::corner_weight;
using hash_grid::Features;
using hash_grid::inside_unit;
using hash_grid::Level;
using hash_grid::load;
using hash_grid::locate;
using hash_grid::read_levels;

constexpr int kEncoded = 32, kHidden = 64, kGeometry = 16, kHarmonics = 16, kColorInput = kHarmonics + kGeometry;
constexpr int kMaxLevels = 16;

// Columns of the encoding: thread t of a row gathers levels t, t + 4, ..., and keeps a level's features together. Returns
// the column at which feature f of the natural order (level by level) stands.
template <int F>
__host__ __device__ constexpr int operand_column(int f) {
  static_assert(F == 2 || F == 4, "2 or 4 features per level");
  if (F == 2) return f;
  const int level = f / 4, part = f % 4, t = level % 4;
  return 16 * (level / 4) + (part < 2 ? 2 * t + part : 8 + 2 * t + part - 2);
}

struct FieldWeights {     // float32
  const float* density1;  // [64, 32]
  const float* density2;  // [16, 64]
  const float* color1;    // [64, 32]
  const float* color2;    // [64, 64]
  const float* color3;    // [3, 64]
};

template <typename T>
struct SharedDensityNet {
  T first[kHidden * padded(kEncoded)];
  T second[kGeometry * padded(kHidden)];

  template <int F>
  __device__ void load(const FieldWeights& w) {
#pragma unroll 4
    for (int i = 4 * threadIdx.x; i < kHidden * kEncoded; i += 4 * blockDim.x) {
      const float4 four = *reinterpret_cast<const float4*>(w.density1 + i);
      T* row = first + i / kEncoded * padded(kEncoded);
      const int f = i % kEncoded;
      *reinterpret_cast<uint32_t*>(row + operand_column<F>(f)) = pack_pair<T>(four.x, four.y);
      *reinterpret_cast<uint32_t*>(row + operand_column<F>(f + 2)) = pack_pair<T>(four.z, four.w);
    }
    share_weights(w.density2, kGeometry, kHidden, kGeometry, second);
  }
};

template <typename T>
struct SharedColorNet {
  T first[kHidden * padded(kColorInput)];
  T second[kHidden * padded(kHidden)];
  T third[16 * padded(kHidden)];  // 3 rows, then zeros

  __device__ void load(const FieldWeights& w) {
    share_weights(w.color1, kHidden, kColorInput, kHidden, first);
    share_weights(w.color2, kHidden, kHidden, kHidden, second);
    share_weights(w.color3, 3, kHidden, 16, third);
  }
};

// Encoding of rows g (x[0]) and g + 8 (x[1]), positions in [0, 1]; rows that are not `valid` get zeros.
//
// Dense and hashed levels take one path, and a row's eight loads are in flight at once. (Sharing a sample's corners between
// two lanes, as the hash_grid op does, is a tenth faster on random points and a third slower along rays: it wants more
// registers, and there it is the number of warps that counts.)
template <int F, typename T>
__device__ __forceinline__ void encode(
    Operand<kEncoded>& out, const Level* levels,  // [32 / F], shared
    const __half* __restrict__ table,             // [rows, F]
    const float (&x)[2][3], const bool (&valid)[2]) {
  const int t = threadIdx.x & 3;
#pragma unroll
  for (int j = 0; j < 8 / F; ++j) {
    const Level& level = levels[t + 4 * j];
    const __half* rows = table + level.offset * F;
    const bool hashed = level.hashed;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum[F] = {};
      if (valid[r]) {
        const Cell<3> cell = locate<3>(x[r], level);
        Features<__half, F> row[8];
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          const uint32_t i = hashed ? corner_row<3, true>(cell, level, c) : corner_row<3, false>(cell, level, c);
          row[c] = load<F>(rows + i * F);
        }
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          const float weight = corner_weight<3>(cell, c);
#pragma unroll
          for (int f = 0; f < F; ++f) sum[f] = fmaf(weight, float(row[c].value[f]), sum[f]);
        }
      }
      if constexpr (F == 2) {
        out.block[j / 2][2 * (j % 2) + r] = pack_pair<T>(sum[0], sum[1]);
      } else {
        out.block[j][r] = pack_pair<T>(sum[0], sum[1]);
        out.block[j][2 + r] = pack_pair<T>(sum[2], sum[3]);
      }
    }
  }
}

// Writes row g + 8 r of an encoding to `row` [32] in the natural order; 4 or 8 bytes a lane at a time.
template <int F, typename T>
__device__ __forceinline__ void store_encoding(T* row, const Operand<kEncoded>& encoded, int r) {
  const int t = threadIdx.x & 3;
#pragma unroll
  for (int j = 0; j < 8 / F; ++j) {
    if constexpr (F == 2) {
      *reinterpret_cast<uint32_t*>(row + 2 * (t + 4 * j)) = encoded.block[j / 2][2 * (j % 2) + r];
    } else {
      *reinterpret_cast<uint2*>(row + 4 * (t + 4 * j)) = make_uint2(encoded.block[j][r], encoded.block[j][2 + r]);
    }
  }
}

// The reverse of store_encoding.
template <int F, typename T>
__device__ __forceinline__ void load_encoding(Operand<kEncoded>& encoded, const T* row, int r, bool valid) {
  const int t = threadIdx.x & 3;
#pragma unroll
  for (int j = 0; j < 8 / F; ++j) {
    if constexpr (F == 2) {
      encoded.block[j / 2][2 * (j % 2) + r] = valid ? *reinterpret_cast<const uint32_t*>(row + 2 * (t + 4 * j)) : 0u;
    } else {
      const uint2 pair = valid ? *reinterpret_cast<const uint2*>(row + 4 * (t + 4 * j)) : make_uint2(0u, 0u);
      encoded.block[j][r] = pair.x;
      encoded.block[j][2 + r] = pair.y;
    }
  }
}

// Geometry features; column 0 is the log density before its bias.
template <typename T>
__device__ __forceinline__ void geometry(
    Accumulator<kGeometry>& out, const SharedDensityNet<T>& net, const Operand<kEncoded>& encoded) {
  Accumulator<kHidden> hidden;
  hidden.clear();
  multiply(hidden, encoded, net.first);
  Operand<kHidden> active;
  relu_to_operand<T>(active, hidden);
  out.clear();
  multiply(out, active, net.second);
}

// Colors before the sigmoid, in columns 0 to 2.
template <typename T>
__device__ __forceinline__ void color(Accumulator<16>& out, const SharedColorNet<T>& net, const Operand<kColorInput>& in) {
  Accumulator<kHidden> hidden;
  Operand<kHidden> active;
  hidden.clear();
  multiply(hidden, in, net.first);
  relu_to_operand<T>(active, hidden);
  hidden.clear();
  multiply(hidden, active, net.second);
  relu_to_operand<T>(active, hidden);
  out.clear();
  multiply(out, active, net.third);
}

// 0 and 1 at the ends; a few units in the last place elsewhere. (__fdividef is 0 where the divisor passes 2^126.)
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// Row lane & 15 of a tile: its harmonics, into shared [16, stride]; the two half warps write a half each.
template <typename T>
__device__ __forceinline__ void share_harmonics(T* rows, int stride, const float* direction) {  // direction [3] of this row
  const int lane = threadIdx.x & 31;
  float y[kHarmonics];
  spherical_harmonics::row<4>(direction, y);
  uint32_t packed[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    packed[i] = lane < 16 ? pack_pair<T>(y[2 * i], y[2 * i + 1]) : pack_pair<T>(y[8 + 2 * i], y[9 + 2 * i]);
  *reinterpret_cast<uint4*>(rows + (lane & 15) * stride + 8 * (lane >> 4)) =
      make_uint4(packed[0], packed[1], packed[2], packed[3]);
}

__device__ __forceinline__ bool inside_box(const float (&x)[3]) {
  return inside_unit(x[0]) && inside_unit(x[1]) && inside_unit(x[2]);
}

// Gradient of a logit from that of its color y = sigmoid(logit). Beyond 12 and -12, where descent brings the logit closer to
// 0, the slope is that at 5: the true one is soon 0 in float, and a saturated color could never return.
constexpr float kSaturated = 6.1441368e-6f, kWayBack = 0.006648056671f;
__device__ __forceinline__ float logit_gradient(float y, float grad) {
  const bool returns = grad * (y - 0.5f) > 0.0f;
  return returns && y * (1.0f - y) < kSaturated ? grad * kWayBack : grad * y * (1.0f - y);
}

constexpr float kLargestLogDensity = 15.0f;  // of truncated_exp: its derivative is that of exp(clamp(x, -15, 15))

}  // namespace lightning_nerf::instant_ngp
