#include "interlevel.h"

#include <algorithm>
#include <vector>

namespace lightning_nerf::interlevel {
namespace {

constexpr int64_t kGrain = 16;  // rows; some ten microseconds of work

float blurred_row(const Rows& r, int64_t row, float* slopes) {
  const float* edges = r.row_edges(row);
  std::vector<double> sums(2 * (r.n + 1), 0.0);
  for (int64_t i = 0; i < r.n; ++i) {
    const double weight = mass(r.row_weights(row)[i], edges[i], edges[i + 1]);
    sums[2 * i + 2] = sums[2 * i] + weight;
    sums[2 * i + 3] = sums[2 * i + 1] + (double(edges[i + 1]) - double(edges[i])) * (sums[2 * i] + 0.5 * weight);
  }
  const Blurred histogram = {edges, sums.data(), r.n, r.width};
  double excess = 0.0, before = histogram.upto(r.row_coarse_edges(row)[0]);
  for (int64_t j = 0; j < r.m; ++j) {
    const double upto = histogram.upto(r.row_coarse_edges(row)[j + 1]), coarse = r.row_coarse(row)[j];
    const Term t = term(upto - before, coarse, coarse);
    excess += t.excess;
    slopes[j] = float(t.slope);
    before = upto;
  }
  return float(excess);
}

float bounded_row(const Rows& r, int64_t row, float* slopes) {
  const float *edges = r.row_edges(row), *coarse_edges = r.row_coarse_edges(row);
  std::vector<double> sums(r.m, 0.0);
  double excess = 0.0;
  for (int64_t i = 0; i < r.n; ++i) {
    const Range range = overlapping(coarse_edges, r.m, edges[i], edges[i + 1]);
    double bound = 0.0;
    for (int64_t j = range.begin; j < range.end; ++j) bound += r.row_coarse(row)[j];
    const double weight = r.row_weights(row)[i];
    const Term t = term(weight, bound, weight);
    excess += t.excess;
    for (int64_t j = range.begin; j < range.end; ++j) sums[j] += t.slope;
  }
  for (int64_t j = 0; j < r.m; ++j) slopes[j] = float(sums[j]);
  return float(excess);
}

void run(const Tensor&, const Rows& r, float* excess, float* slopes) {
  parallel_for_rays(r.k, kGrain, [&](int64_t row) {
    float* of_row = slopes + row * r.m;
    if (!r.counting[row]) {
      excess[row] = 0.0f;
      std::fill(of_row, of_row + r.m, 0.0f);
      return;
    }
    excess[row] = r.width > 0.0 ? blurred_row(r, row, of_row) : bounded_row(r, row, of_row);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "interlevel(Tensor edges, Tensor weights, Tensor coarse_edges, Tensor coarse_weights, Tensor counting, float width) "
      "-> (Tensor excess, Tensor slopes)");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) { m.impl("interlevel", TORCH_BOX(&interlevel<run>)); }

}  // namespace lightning_nerf::interlevel
