#include "scan.h"

#include <algorithm>

namespace lightning_nerf::scan {
namespace {

constexpr int64_t kGrain = 256;  // segments; some ten microseconds of work
constexpr int64_t kTile = 4096;  // entries, where segments are runs of keys

struct Cpu {
  using Real = double;  // costs nothing here, and a sum's error no longer grows with its length

  template <typename S>
  static void run(const Tensor&, const S& scan, const Segments& s, bool reverse) {
    if (s.layout == Layout::kKeys) return run_keys(scan, s, reverse);
    if (s.layout == Layout::kPackedInfo) {
      std::fill(scan.out, scan.out + s.n, 0.0f);
    } else {
      std::fill(scan.out, scan.out + s.begin(0), 0.0f);
      std::fill(scan.out + s.begin(s.n_segments), scan.out + s.n, 0.0f);
    }
    const int64_t step = reverse ? -1 : 1;
    parallel_for(s.n_segments, kGrain, [&](int64_t r) {
      const int64_t count = s.end(r) - s.begin(r);
      auto state = S::identity();
      for (int64_t k = 0, i = reverse ? s.end(r) - 1 : s.begin(r); k < count; ++k, i += step) {
        state = S::combine(state, scan.load(i, k == 0 ? kNone : i - step));
        scan.store(i, k == count - 1 ? kNone : i + step, state);
      }
    });
  }

  // A tile does the runs that begin in it, to their ends.
  template <typename S>
  static void run_keys(const S& scan, const Segments& s, bool reverse) {
    const int64_t step = reverse ? -1 : 1;
    const auto entry = [&](int64_t position) { return reverse ? s.n - 1 - position : position; };
    const auto begins = [&](int64_t position) {
      return position == 0 || s.keys[entry(position)] != s.keys[entry(position) - step];
    };
    parallel_for((s.n + kTile - 1) / kTile, 1, [&](int64_t tile) {
      const int64_t stop = std::min(s.n, (tile + 1) * kTile);
      int64_t position = tile * kTile;
      while (position < stop && !begins(position)) ++position;
      if (position == stop) return;
      auto state = S::identity();
      for (bool first = true; position < s.n && !(first && position >= stop);) {
        const int64_t i = entry(position);
        const bool last = ++position == s.n || begins(position);
        state = S::combine(first ? S::identity() : state, scan.load(i, first ? kNone : i - step));
        scan.store(i, last ? kNone : i + step, state);
        first = last;
      }
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("scan(Tensor values, Tensor segments, bool product, bool exclusive, bool reverse) -> Tensor");
  m.def(
      "scan_product_backward(Tensor grad, Tensor values, Tensor products, Tensor segments, bool exclusive, bool reverse) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("scan", TORCH_BOX(&scan<Cpu>));
  m.impl("scan_product_backward", TORCH_BOX(&scan_product_backward<Cpu>));
}

}  // namespace lightning_nerf::scan
