// How the lanes of a ray hold channels: up to four lie with their sample; of more, a row of channels spans the lanes.
#pragma once
#include "composite_lanes.cuh"

namespace lightning_nerf::composite {

constexpr int kNarrow = 4;

// Each lane reads the channels of its own samples. kCount: how many there are, 0 or 3 if a lane has several samples; -1: any
// number up to kNarrow.
template <class G, int kCount>
struct Narrow {
  static constexpr int kPer = G::kPer, kHeld = kCount < 0 ? kNarrow : kCount;
  static_assert(kPer == 1 || kCount == 0 || kCount == 3);
  static constexpr int kKept = kPer == 4 ? 2 : 6;             // chunks that the backward pass keeps in registers
  static constexpr int kBlocks = kPer == 4 ? 5 : 6;           // per multiprocessor: as many as fit without spilling
  static constexpr int kStaged = kPer == 4 ? kBlock * 4 : 1;  // floats of shared memory

  struct Rows {
    float value[kHeld > 0 ? kPer * kHeld : 1];
  };

  const Samples& s;
  const Ray<G>& ray;
  float sums[kNarrow] = {};         // forward
  float of_channels[kNarrow] = {};  // backward: their cotangents
  // Gradients are written as one run of floats, piece q * kLanes + lane of a chunk by this lane: the sample of its first float,
  // and cotangents in the order of its channels (one for each piece; of pieces of four floats, all from the first one's on).
  int source[kNarrow] = {};
  float run[kNarrow] = {};

  __device__ __forceinline__ Narrow(const Samples& s, const Ray<G>& ray) : s(s), ray(ray) {}

  __device__ __forceinline__ int n_channels() const { return kCount < 0 ? s.n_channels : kCount; }

  __device__ __forceinline__ void load(int j, Rows& rows) const {
    const int i = ray.entry(j), n = int(s.n);
    if constexpr (kPer == 4) {
      if (i + 4 <= n) load(i, true, rows);
      else load(i, false, rows);
    } else {
#pragma unroll
      for (int c = 0; c < kHeld; ++c)
        rows.value[c] = c < n_channels() ? __ldg(s.channels + int64_t(min(i, n - 1)) * n_channels() + c) : 0.0f;
    }
  }

  __device__ __forceinline__ void add(int, const float (&weight)[kPer], const Rows& rows) {
#pragma unroll
    for (int k = 0; k < kPer; ++k) {
      if (weight[k] == 0.0f) continue;  // a void sample's channels may hold anything
#pragma unroll
      for (int c = 0; c < kHeld; ++c) sums[c] += weight[k] * rows.value[k * kHeld + c];
    }
  }

  __device__ __forceinline__ void finish(float opacity, float* out) {
#pragma unroll
    for (int c = 0; c < kHeld; ++c)
      if (c < n_channels()) sums[c] = sum<G::kLanes>(sums[c]);
    if (!ray.exists || ray.lane != 0) return;
#pragma unroll
    for (int c = 0; c < kHeld; ++c) {
      if (c >= n_channels()) continue;
      const float behind = s.background && c < 3 ? s.behind(ray.index)[c] : 0.0f;
      out[ray.index * n_channels() + c] = s.background ? sums[c] + (1.0f - opacity) * behind : sums[c];
    }
  }

  // Backward. `cotangents`: [R, C] or null.
  __device__ __forceinline__ void begin_backward(const float* cotangents) {
    const float* own = cotangents && ray.exists ? cotangents + ray.index * n_channels() : nullptr;
#pragma unroll
    for (int c = 0; c < kHeld; ++c) of_channels[c] = own && c < n_channels() ? own[c] : 0.0f;
#pragma unroll
    for (int q = 0; q < kHeld; ++q) {
      if (q >= n_channels()) continue;
      const unsigned n = n_channels(), f = (q * G::kLanes + ray.lane) * kPer;
      source[q] = f / n;
      run[q] = own ? own[kPer == 4 ? (ray.lane * 4 + q) % n : f % n] : 0.0f;
    }
  }

  __device__ __forceinline__ void dot(int, const Rows& rows, float (&g)[kPer]) const {
#pragma unroll
    for (int k = 0; k < kPer; ++k)
#pragma unroll
      for (int c = 0; c < kHeld; ++c) g[k] += of_channels[c] * rows.value[k * kHeld + c];
  }

  // Gradients of a chunk's channels; its first entry is `first`.
  __device__ __forceinline__ void store_gradient(float* grad, int first, const float (&weight)[kPer], float* staged) const {
    if constexpr (kPer == 4 && kHeld == 3) {
      float* weights = staged + (threadIdx.x - ray.lane) * 4;
      __syncwarp();
      *reinterpret_cast<float4*>(weights + 4 * ray.lane) = make_float4(weight[0], weight[1], weight[2], weight[3]);
      __syncwarp();
      const int low = max(ray.lead - first, 0) * 3;
      const int high = min(max(ray.lead + ray.count - first, 0), G::kChunk) * 3;
      float* to = grad + (int64_t(ray.base) + first) * 3;
#pragma unroll
      for (int q = 0; q < 3; ++q) {  // four floats of two samples
        const int f = (q * G::kLanes + ray.lane) * 4;
        const int channel = f - source[q] * 3;  // of the first float
        const float here = weights[source[q]], next = weights[source[q] + 1];
        const auto cotangent = [&](int e) { return run[(q * G::kLanes * 4 + e) % 3]; };
        const float piece[4] = {
            here * cotangent(0), (channel < 2 ? here : next) * cotangent(1), (channel < 1 ? here : next) * cotangent(2),
            next * cotangent(3)};
        store_values(to + f, low - f, high - f, piece);
      }
    } else if constexpr (kPer == 1) {
      float* to = grad + (int64_t(ray.base) + first) * n_channels() + ray.lane;
#pragma unroll
      for (int q = 0; q < kHeld; ++q) {
        if (q >= n_channels()) continue;
        const float w = __shfl_sync(kFullWarp, weight[0], source[q], G::kLanes);
        if (first + source[q] < ray.count) to[q * G::kLanes] = w * run[q];
      }
    }
  }

 private:
  __device__ __forceinline__ void load(int i, bool whole, Rows& rows) const {
#pragma unroll
    for (int q = 0; q < kHeld; ++q) {
      float four[4];
      load_values(s.channels, int64_t(i) * kHeld + 4 * q, s.n * kHeld, whole, four);
#pragma unroll
      for (int e = 0; e < 4; ++e) rows.value[4 * q + e] = four[e];
    }
  }
};

// Five to 32 channels, one sample per lane.
template <class G>
struct Wide {
  static constexpr int kPer = G::kPer, kLanes = G::kLanes, kHeld = kMaxChannels / kLanes;
  static constexpr int kKept = 4, kBlocks = 4, kStaged = 1;
  static_assert(kPer == 1);

  struct Rows {};

  const Samples& s;
  const Ray<G>& ray;
  float sums[kHeld] = {};  // of the channels that this lane holds: lane, lane + kLanes, ...
  float of_channels[kHeld] = {};

  __device__ __forceinline__ Wide(const Samples& s, const Ray<G>& ray) : s(s), ray(ray) {}

  __device__ __forceinline__ void load(int, Rows&) const {}

  // This lane's share of the first row of a chunk.
  __device__ __forceinline__ int64_t share(int first) const {
    return (int64_t(ray.base) + first) * s.n_channels + ray.lane;
  }
  __device__ __forceinline__ bool holds_channel(int q) const { return ray.lane + q * kLanes < s.n_channels; }

  __device__ __forceinline__ void add(int first, const float (&weight)[1], const Rows&) {
    const float* rows = s.channels + share(first);
    constexpr int kBatch = kLanes / 2;  // rows in flight
#pragma unroll
    for (int k = 0; k < kLanes; k += kBatch) {
      float w[kBatch], value[kBatch][kHeld] = {};
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        w[b] = __shfl_sync(kFullWarp, weight[0], k + b, kLanes);
#pragma unroll
        for (int q = 0; q < kHeld; ++q)
          if (w[b] != 0.0f && holds_channel(q)) value[b][q] = __ldg(rows + (k + b) * s.n_channels + q * kLanes);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
#pragma unroll
        for (int q = 0; q < kHeld; ++q) sums[q] += w[b] * value[b][q];
    }
  }

  __device__ __forceinline__ void finish(float opacity, float* out) {
    if (!ray.exists) return;
    if (s.background && ray.lane < 3) sums[0] += (1.0f - opacity) * s.behind(ray.index)[ray.lane];
#pragma unroll
    for (int q = 0; q < kHeld; ++q)
      if (holds_channel(q)) out[ray.index * s.n_channels + ray.lane + q * kLanes] = sums[q];
  }

  __device__ __forceinline__ void begin_backward(const float* cotangents) {
#pragma unroll
    for (int q = 0; q < kHeld; ++q)
      if (cotangents && ray.exists && holds_channel(q))
        of_channels[q] = cotangents[ray.index * s.n_channels + ray.lane + q * kLanes];
  }

  __device__ __forceinline__ void dot(int first, const Rows&, float (&g)[1]) const {
    const float* rows = s.channels + share(first);
    float dots[kLanes];
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      dots[k] = 0.0f;
#pragma unroll
      for (int q = 0; q < kHeld; ++q)
        if (first + k < ray.count && holds_channel(q))
          dots[k] += of_channels[q] * __ldg(rows + k * s.n_channels + q * kLanes);
    }
    transposed_sum(dots);
    g[0] += dots[0];
  }

  __device__ __forceinline__ void store_gradient(float* grad, int first, const float (&weight)[1], float*) const {
    float* rows = grad + share(first);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      const float w = __shfl_sync(kFullWarp, weight[0], k, kLanes);
#pragma unroll
      for (int q = 0; q < kHeld; ++q)
        if (first + k < ray.count && holds_channel(q)) rows[k * s.n_channels + q * kLanes] = w * of_channels[q];
    }
  }

 private:
  // Lane l gets the sum over lanes of value[l] in value[0]: lanes swap halves of what they hold until one entry is left.
  template <int kHalf = kLanes / 2>
  __device__ __forceinline__ void transposed_sum(float (&value)[kLanes]) const {
    const bool upper = ray.lane & kHalf;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float sent = upper ? value[i] : value[i + kHalf];
      value[i] = (upper ? value[i + kHalf] : value[i]) + __shfl_xor_sync(kFullWarp, sent, kHalf, kLanes);
    }
    if constexpr (kHalf > 1) transposed_sum<kHalf / 2>(value);
  }
};

}  // namespace lightning_nerf::composite
