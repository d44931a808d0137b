// Where a value lies among sorted ones, and where along a ray a share of its weight lies behind: the inverse of its CDF.
// Both devices and the reference do the same float32 operations in the same order (compiled without fused multiply-add), so
// that they agree to the bit: a steep stretch would turn any difference into a jump.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::importance {

// The values of all rays: rows of one width, or lists given by begin and count.
struct RayLists {
  const float* values;
  const int64_t* packed_info;  // [R, 2] or null: rows
  int64_t n, n_rays, width;

  LN_HD int64_t bounded(int64_t i) const { return i < 0 ? 0 : i < n ? i : n; }  // never outside the memory
  LN_HD int64_t begin(int64_t ray) const { return packed_info ? bounded(packed_info[2 * ray]) : ray * width; }
  LN_HD int64_t count(int64_t ray) const {
    if (!packed_info) return width;
    const int64_t count = bounded(packed_info[2 * ray] + packed_info[2 * ray + 1]) - begin(ray);
    return count > 0 ? count : 0;
  }
};

// First of the sorted values [begin, end) that is greater than x; end if none is.
LN_HD int64_t first_above(const float* values, int64_t begin, int64_t end, float x) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (values[middle] > x) end = middle;
    else begin = middle + 1;
  }
  return begin;
}

struct Bracket {
  int64_t left, right;
};

// Neighbors with values[left] <= x < values[right]; an x before the first counts as the first; the last two where it is
// not before the last.
LN_HD Bracket bracket(const float* values, int64_t begin, int64_t count, float x) {
  if (count > 0 && x < values[begin]) x = values[begin];
  const int64_t right = first_above(values, begin, begin + count - 1, x);
  return {right > begin ? right - 1 : begin, right};
}

struct Queries {
  const float* values;
  const int64_t* rays;  // of each query, or null: rows
  int64_t n, width;
  bool relative;  // to the ray's first key
  int64_t* left;
  int64_t* right;
};

// A query of no ray gets -1.
LN_HD void search(const RayLists& keys, const Queries& queries, int64_t i) {
  const int64_t ray = queries.rays ? queries.rays[i] : i / queries.width;
  const bool exists = ray >= 0 && ray < keys.n_rays;
  const int64_t begin = exists ? keys.begin(ray) : 0, from = queries.relative ? begin : 0;
  const Bracket b = exists ? bracket(keys.values, begin, keys.count(ray), queries.values[i]) : Bracket{-1, -1};
  queries.left[i] = exists ? b.left - from : -1;
  queries.right[i] = exists ? b.right - from : -1;
}

// What the samples of one ray are drawn from.
struct Inverse {
  const float* edges;
  const float* cdfs;
  int64_t begin, count;  // of the ray's edges
  float low, step;       // of u; where uniform, of the way from the first edge to the last
  float jitter;          // in [0, 1): the samples' place in their strata
  bool uniform;          // the CDF says nothing

  LN_HD float first() const { return count > 0 ? edges[begin] : 0.0f; }
  LN_HD float last() const { return count > 0 ? edges[begin + count - 1] : 0.0f; }

  LN_HD float sample(int64_t k) const {
    const float u = low + (float(k) + jitter) * step;
    float left = first(), right = last(), share = u;
    if (!uniform) {
      const Bracket b = bracket(cdfs, begin, count, u);
      left = edges[b.left];
      right = edges[b.right];
      const float mass = cdfs[b.right] - cdfs[b.left];
      share = mass > 0.0f ? (u - cdfs[b.left]) / mass : 0.5f;
      share = share > 0.0f ? (share < 1.0f ? share : 1.0f) : 0.0f;
    }
    const float t = left + share * (right - left);
    return t < right ? t : right;
  }

  // The outermost edges of two samples or more: as far from the samples as these are from the edges between them.
  LN_HD float first_edge(float sample, float next) const {
    const float t = sample - (next - sample) * 0.5f;
    return t > first() ? t : first();
  }
  LN_HD float last_edge(float before, float sample) const {
    const float t = sample + (sample - before) * 0.5f;
    return t < last() ? t : last();
  }
};

struct Resampling {
  RayLists rays;                  // the edges
  const float* cdfs;              // at the edges
  const float* jitter;            // [R] or null: 0.5
  const int64_t* sample_offsets;  // [R + 1] or null: as many for each ray
  const int64_t* edge_offsets;    // [R + 1] with sample_offsets
  int64_t n_samples;              // of all rays
  float* samples;
  float* edges;

  struct Range {
    int64_t sample, n, edge;  // first sample, number of samples, first edge
    bool any_edge;
  };
  LN_HD Range range(int64_t ray) const {
    if (!sample_offsets) {
      const int64_t n = n_samples / rays.n_rays;
      return {ray * n, n, ray * (n + 1), true};
    }
    const int64_t n = sample_offsets[ray + 1] - sample_offsets[ray];
    return {sample_offsets[ray], n, edge_offsets[ray], n > 0};
  }

  // `finite`: every CDF value of the ray is.
  LN_HD Inverse inverse(int64_t ray, int64_t n, bool finite) const {
    const int64_t begin = rays.begin(ray), count = rays.count(ray);
    const float low = count > 0 ? cdfs[begin] : 0.0f, high = count > 0 ? cdfs[begin + count - 1] : 0.0f;
    const bool uniform = !(finite && high > low);
    return {
        rays.values,
        cdfs,
        begin,
        count,
        uniform ? 0.0f : low,
        (uniform ? 1.0f : high - low) / float(n),
        jitter ? jitter[ray] : 0.5f,
        uniform};
  }
};

}  // namespace lightning_nerf::importance
