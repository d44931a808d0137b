// What happens between the fields of rounds that put a fixed number of samples on each ray: which rays, where on them, and the
// weights' CDF. Compiled without fused multiply-add, so that both devices round alike: a CDF would turn a difference into a jump.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::rounds {

enum Spacing : int64_t {
  kPlaces = 0,
  kUniform = 1,
  kDisparity = 2
};  // what edges are: places already, or shares of the way

// A ray is sampled where its interval is not empty. Finite, too: a miss has both ends at inf.
LN_HD bool is_active(float near, float far) { return near < far && near > -INFINITY && far < INFINITY; }

// The K rays that get samples.
struct Choice {
  const float* near;       // [R]
  const float* far;        // [R]
  const int32_t* offsets;  // [R + 1], CSR: of each ray one entry or none
  int64_t n_rays, count;
  float nearest;  // in shares of far, where near <= 0; 0: near stays

  int64_t* rays;    // [K]
  float* row_near;  // [K]
  float* row_far;   // [K]
  bool* used;       // [K]

  LN_HD void choose(int64_t slot) const {
    int64_t begin = 0, end = n_rays;  // the first ray whose entries end after the slot
    while (begin < end) {
      const int64_t middle = begin + (end - begin) / 2;
      if (offsets[middle + 1] > slot) end = middle;
      else begin = middle + 1;
    }
    const bool is_used = begin < n_rays;
    const float low = is_used ? near[begin] : 0.0f, high = is_used ? far[begin] : 0.0f;
    rays[slot] = is_used ? begin : 0;
    row_near[slot] = is_used && low <= 0.0f && nearest > 0.0f ? nearest * high : low;
    row_far[slot] = high;
    used[slot] = is_used;
  }
};

// Where a share of the way from near to far lies.
struct Way {
  float near, far;
  double nearest, step;  // 1 / near and what 1 / t changes by
  int64_t spacing;

  LN_HD Way(float near, float far, int64_t spacing) : near(near), far(far), nearest(0.0), step(0.0), spacing(spacing) {
    if (spacing != kDisparity) return;
    nearest = 1.0 / double(near);
    step = 1.0 / double(far) - nearest;
  }
  LN_HD float place(float share) const {
    if (spacing == kPlaces) return share;
    if (spacing == kUniform) return share < 0.5f ? near + share * (far - near) : far - (far - near) * (1.0f - share);
    const float t = float(1.0 / (nearest + double(share) * step));  // float64: far may be a million times near
    return t > near ? (t < far ? t : far) : near;
  }
};

struct Intervals {
  const float* edges;      // [K, n + 1]
  const int64_t* rays;     // [K]
  const float* near;       // [K]
  const float* far;        // [K]
  const bool* used;        // [K]
  const int32_t* entries;  // [R + 1]: entries of rays among the K
  int64_t k, n, n_rays, spacing, capacity;

  float* t_starts;       // [capacity]
  float* t_ends;         // [capacity]
  int32_t* ray_indices;  // [capacity]
  int32_t* offsets;      // [R + 1]

  // Edge j of a row is the end of one sample and the start of the next.
  LN_HD void write_edge(const Way& way, int64_t row, int64_t j) const {
    const float t = used[row] ? way.place(edges[row * (n + 1) + j]) : 0.0f;
    const int64_t i = row * n + j;
    if (j > 0) t_ends[i - 1] = t;
    if (j == n) return;
    t_starts[i] = t;
    ray_indices[i] = int32_t(rays[row]);
  }
  LN_HD void write_tail(int64_t i) const {
    t_starts[i] = t_ends[i] = 0.0f;
    ray_indices[i] = 0;
  }
  LN_HD void write_offset(int64_t ray) const { offsets[ray] = int32_t(entries[ray] * n); }
};

struct Cdfs {
  const float* weights;  // [K, n]
  const int64_t* key;    // [3] seed, rank, step; null: not annealed
  int64_t k, n;
  float padding;
  int64_t anneal_steps;
  float anneal_slope;

  float* cdfs;  // [K, n + 1]

  // By which weights are raised: from 0 in the first step to 1.
  LN_HD float power() const {
    if (!key || anneal_steps <= 0) return 1.0f;
    const float done = float(key[2]) / float(anneal_steps), share = done < 1.0f ? done : 1.0f;
    return anneal_slope * share / ((anneal_slope - 1.0f) * share + 1.0f);
  }
  LN_HD float density(int64_t i, float power) const {
    const float padded = weights[i] + padding;
    return power == 1.0f ? padded : powf(padded, power);
  }
};

// Which of K rows of n samples are of a ray that counts.
struct Counting {
  const bool* counts;          // [R]
  const int32_t* ray_indices;  // [N], N >= K n
  const int32_t* offsets;      // [R + 1], of samples
  int64_t n_rays, k, n;

  bool* counting;  // [K]

  LN_HD void write(int64_t row) const {
    const bool is_used = (row + 1) * n <= offsets[n_rays];
    const int64_t ray = is_used ? ray_indices[row * n] : 0;
    counting[row] = is_used && ray >= 0 && ray < n_rays && counts[ray];
  }
};

}  // namespace lightning_nerf::rounds
