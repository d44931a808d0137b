// How a warp takes the samples of its rays: kLanes neighboring lanes own a ray and take it kChunk samples at a time, kPer
// consecutive ones per lane. With kPer = 4 every load and store is of 16 bytes: a chunk then begins at a multiple of four
// entries, and what lies in front of the ray or behind it is masked. The groups of a warp walk the same number of chunks, so
// that every shuffle has the whole warp.
#pragma once
#include "composite.cuh"

namespace lightning_nerf::composite {

constexpr int kBlock = 128;

template <int kLanes_, int kPer_>
struct Group {
  static constexpr int kLanes = kLanes_, kPer = kPer_, kChunk = kLanes_ * kPer_;
};

// A ray and this lane's part of it. Entries are counted from `base`, so that no sum passes 2^31.
template <class G>
struct Ray {
  int64_t index;
  bool exists;
  int lane;
  int base;   // the first chunk's first entry
  int lead;   // entries of it in front of the ray
  int count;  // samples of the ray
  int last;   // the first entry of the last lane that holds any

  __device__ __forceinline__ explicit Ray(const Samples& s) {
    index = (blockIdx.x * int64_t(kBlock) + threadIdx.x) / G::kLanes;
    exists = index < s.n_rays;
    lane = threadIdx.x % G::kLanes;
    const int begin = exists ? int(s.begin(index)) : 0;
    lead = begin & (G::kPer - 1);
    base = begin - lead;
    limit(exists ? max(int(s.begin(index + 1)) - begin, 0) : 0);
  }
  // From here on the ray has this number of samples.
  __device__ __forceinline__ void limit(int samples) {
    count = samples;
    last = max(lead + count - 1, 0) & ~(G::kPer - 1);
  }
  // Of this ray and of the others of this warp.
  __device__ __forceinline__ int chunks() const {
    return __reduce_max_sync(kFullWarp, count > 0 ? (lead + count + G::kChunk - 1) / G::kChunk : 0);
  }
  // The lane's first entry in a chunk, counted from `base`.
  __device__ __forceinline__ int first(int chunk) const { return chunk * G::kChunk + lane * G::kPer; }
  // Is entry j a sample of the ray?
  __device__ __forceinline__ bool holds(int j) const { return unsigned(j - lead) < unsigned(count); }
  // Entry j in memory; lanes behind the ray's end take its last entries.
  __device__ __forceinline__ int entry(int j) const { return base + min(j, last); }
};

// kPer values of [n] from entry i on, kPer of them at once where they are `whole`; past the end anything.
template <int kPer>
__device__ __forceinline__ void load_values(
    const float* __restrict__ from, int64_t i, int64_t n, bool whole, float (&to)[kPer]) {
  if (kPer == 4 && whole) {
    const float4 four = __ldg(reinterpret_cast<const float4*>(from + i));
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  } else {
#pragma unroll
    for (int k = 0; k < kPer; ++k) to[k] = __ldg(from + min(i + k, n - 1));
  }
}

// Those of kPer values whose place is in [low, high). No branch: some lane of most warps is at an end of its ray.
template <int kPer>
__device__ __forceinline__ void store_values(float* to, int low, int high, const float (&from)[kPer]) {
  if constexpr (kPer == 4) {
    const int mask = (15 << min(max(low, 0), 4)) & (15 >> (4 - min(max(high, 0), 4)));
    asm volatile(
        "{\n"
        ".reg .pred all, part;\n"
        ".reg .b32 bit;\n"
        "setp.eq.s32 all, %5, 15;\n"
        "@all st.global.v4.f32 [%0], {%1, %2, %3, %4};\n"
        "and.b32 bit, %5, 1;\n setp.ne.and.s32 part, bit, 0, !all;\n @part st.global.f32 [%0], %1;\n"
        "and.b32 bit, %5, 2;\n setp.ne.and.s32 part, bit, 0, !all;\n @part st.global.f32 [%0 + 4], %2;\n"
        "and.b32 bit, %5, 4;\n setp.ne.and.s32 part, bit, 0, !all;\n @part st.global.f32 [%0 + 8], %3;\n"
        "and.b32 bit, %5, 8;\n setp.ne.and.s32 part, bit, 0, !all;\n @part st.global.f32 [%0 + 12], %4;\n"
        "}\n" ::"l"(to),
        "f"(from[0]), "f"(from[1]), "f"(from[2]), "f"(from[3]), "r"(mask)
        : "memory");
  } else {
    if (low <= 0 && high > 0) to[0] = from[0];
  }
}

// A lane's samples of a chunk.
template <class G>
struct Run {
  float density[G::kPer];  // negative, so void, where a sample is not the ray's
  float middle[G::kPer], delta[G::kPer];

  // Issues the loads, and waits for none.
  __device__ __forceinline__ void load(const Samples& s, const Ray<G>& ray, int j) {
    const int i = ray.entry(j);
    if (i + G::kPer <= int(s.n)) load(s, i, true);
    else load(s, i, false);
  }
  // What they do to the light.
  __device__ __forceinline__ void absorb(const Samples& s, const Ray<G>& ray, int j, Absorption (&a)[G::kPer]) {
#pragma unroll
    for (int k = 0; k < G::kPer; ++k)
      if (!ray.holds(j + k)) density[k] = -1.0f;
    if (!s.deltas_given) {
#pragma unroll
      for (int k = 0; k < G::kPer; ++k) {
        const Interval here = s.interval(middle[k], delta[k]);
        middle[k] = here.middle, delta[k] = here.delta;
      }
    }
    if (s.alphas_given) {
#pragma unroll
      for (int k = 0; k < G::kPer; ++k) a[k] = composite::absorb(true, density[k], delta[k]);
    } else {
#pragma unroll
      for (int k = 0; k < G::kPer; ++k) a[k] = composite::absorb(false, density[k], delta[k]);
    }
  }

 private:
  __device__ __forceinline__ void load(const Samples& s, int i, bool whole) {
    load_values(s.densities, i, s.n, whole, density);
    load_values(s.t_starts, i, s.n, whole, middle);
    load_values(s.t_ends, i, s.n, whole, delta);
  }
};

// Adds a lane's entries of `from`, where they are the ray's.
template <class G>
__device__ __forceinline__ void add_given(
    const float* from, const Samples& s, const Ray<G>& ray, int j, float (&to)[G::kPer]) {
  if (!from) return;
  float given[G::kPer];
  const int i = ray.entry(j);
  load_values(from, i, s.n, i + G::kPer <= int(s.n), given);
#pragma unroll
  for (int k = 0; k < G::kPer; ++k)
    if (ray.holds(j + k)) to[k] += given[k];
}

// A lane's entries of `out`, where they are the ray's.
template <class G>
__device__ __forceinline__ void store(float* out, const Ray<G>& ray, int j, const float (&from)[G::kPer]) {
  store_values(out + ray.entry(j), ray.lead - j, ray.lead + ray.count - j, from);
}

template <int kLanes>
__device__ __forceinline__ float product_up_to(float value, int lane) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const float other = __shfl_up_sync(kFullWarp, value, step, kLanes);
    if (lane >= step) value *= other;
  }
  return value;
}

template <int kLanes>
__device__ __forceinline__ float sum(float value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kFullWarp, value, step, kLanes);
  return value;
}

// Transmittance in front of each of a lane's samples; `carried` is the transmittance in front of the chunk, then behind it.
template <class G>
__device__ __forceinline__ void transmittances(
    const Absorption (&a)[G::kPer], int lane, float& carried, float (&before)[G::kPer]) {
  float product = a[0].transmitted;
#pragma unroll
  for (int k = 1; k < G::kPer; ++k) product *= a[k].transmitted;
  product = product_up_to<G::kLanes>(product, lane);
  const float lanes_before = __shfl_up_sync(kFullWarp, product, 1, G::kLanes);
  before[0] = lane == 0 ? carried : carried * lanes_before;
#pragma unroll
  for (int k = 1; k < G::kPer; ++k) before[k] = before[k - 1] * a[k - 1].transmitted;
  carried *= __shfl_sync(kFullWarp, product, G::kLanes - 1, G::kLanes);
}

// lambda behind a lane's last sample; `behind` is that behind the chunk, then in front of it. Each sample maps lambda to
// given + transmitted * lambda; what is scanned from the ray's end is the composition of these maps.
template <class G>
__device__ __forceinline__ float lambda_behind(const Lit (&lit)[G::kPer], int lane, float& behind) {
  float factor = 1.0f, term = 0.0f;
#pragma unroll
  for (int k = G::kPer - 1; k >= 0; --k) {
    term = lit[k].pass(term);
    factor *= lit[k].transmitted;
  }
#pragma unroll
  for (int step = 1; step < G::kLanes; step *= 2) {
    const float next_factor = __shfl_down_sync(kFullWarp, factor, step, G::kLanes);
    const float next_term = __shfl_down_sync(kFullWarp, term, step, G::kLanes);
    if (lane + step < G::kLanes) {
      term += factor * next_term;
      factor *= next_factor;
    }
  }
  const float whole = term + factor * behind;  // lambda in front of the lane
  const float next = __shfl_down_sync(kFullWarp, whole, 1, G::kLanes);
  const float result = lane == G::kLanes - 1 ? behind : next;
  behind = __shfl_sync(kFullWarp, whole, 0, G::kLanes);
  return result;
}

// Entries [from, to), by all threads of the grid.
__device__ __forceinline__ void zero_tail(float* data, int64_t from, int64_t to) {
  const int64_t stride = gridDim.x * int64_t(kBlock);
  for (int64_t i = from + blockIdx.x * int64_t(kBlock) + threadIdx.x; i < to; i += stride) data[i] = 0.0f;
}

}  // namespace lightning_nerf::composite
