// How much of one histogram another does not cover: the blurred one's integrals, and which intervals overlap.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::interlevel {

constexpr double kEps = 1e-7;  // added to weights that are divided by

struct Rows {
  const float* edges;         // [K, n + 1], rising
  const float* weights;       // [K, n]
  const float* coarse_edges;  // [K, m + 1], rising
  const float* coarse;        // [K, m]
  const bool* counting;       // [K]
  int64_t k, n, m;
  double width;  // half of the box's; 0: no blur

  LN_HD const float* row_edges(int64_t row) const { return edges + row * (n + 1); }
  LN_HD const float* row_weights(int64_t row) const { return weights + row * n; }
  LN_HD const float* row_coarse_edges(int64_t row) const { return coarse_edges + row * (m + 1); }
  LN_HD const float* row_coarse(int64_t row) const { return coarse + row * m; }
};

// Number of the rising values that are <= x, or with `strict` those < x; in [0, n] whatever they hold.
template <bool strict = false>
LN_HD int64_t rank(const float* values, int64_t n, double x) {
  int64_t begin = 0, end = n;
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (strict ? double(values[middle]) < x : double(values[middle]) <= x) begin = middle + 1;
    else end = middle;
  }
  return begin;
}

struct Range {
  int64_t begin, end;
};

// The intervals, of n between rising edges, that share more than a border with the one from `low` to `high`.
LN_HD Range overlapping(const float* edges, int64_t n, float low, float high) {
  return {rank(edges + 1, n, low), rank<true>(edges, n, high)};
}

// Weight over length of an interval is its height; an interval without length has none.
LN_HD double mass(float weight, float low, float high) { return high > low ? double(weight) : 0.0; }

// A histogram's weight C up to each edge and the integral D of C, which says all: blurred by a box of half-width r, its weight
// up to x is (D(x + r) - D(x - r)) / 2 r. float64: where thin light meets a long interval, a weight of 1e-7 is what two such
// differences leave of sums near 1.
struct Blurred {
  const float* edges;  // [n + 1]
  const double* sums;  // [n + 1, 2]: C, D
  int64_t n;
  double radius;

  LN_HD double integral(double x) const {
    const int64_t i = rank(edges, n + 1, x) - 1;
    if (i < 0) return 0.0;
    const double upto = sums[2 * i], past = x - double(edges[i]);
    double area = sums[2 * i + 1] + past * upto;
    if (i < n) area += 0.5 * past * past * (sums[2 * i + 2] - upto) / (double(edges[i + 1]) - double(edges[i]));
    return area;
  }
  LN_HD double upto(double x) const { return (integral(x + radius) - integral(x - radius)) / (2.0 * radius); }
};

struct Term {
  double excess, slope;  // and its derivative in what is subtracted
};

// max(0, weight - bound)^2 / (divisor + eps); NaN stays NaN.
LN_HD Term term(double weight, double bound, double divisor) {
  const double over = weight - bound, share = over / (divisor + kEps);
  return {over < 0.0 ? 0.0 : over * share, over > 0.0 ? -2.0 * share : 0.0};
}

}  // namespace lightning_nerf::interlevel
