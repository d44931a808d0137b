// What one entry adds to a scan along its segment, and the derivative of a product. Walking the segments, lane cooperation
// and the reverse direction belong to the launchers.
//
// A scan is a State with an identity and an associative combine(earlier, later); `load` reads what entry i adds, `store`
// writes its result. Both also get the neighbor before or after i in the scan's direction, kNone where the segment begins
// or ends: an exclusive scan is an inclusive one of the values before.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::scan {

constexpr int64_t kNone = -1;

enum class Layout {
  kOffsets,     // CSR
  kPackedInfo,  // begin and count, in any order and with gaps
  kKeys,        // a segment is a run of equal keys
};

// The segments of N entries. The layout says which list it is: an empty one has no address.
struct Segments {
  Layout layout;
  const int32_t* offsets;      // [R + 1]
  const int64_t* packed_info;  // [R, 2]
  const int64_t* keys;         // [N]
  int64_t n, n_segments;

  // Never outside the memory, whatever the lists hold.
  LN_HD int64_t bounded(int64_t i) const { return i < 0 ? 0 : i < n ? i : n; }
  LN_HD int64_t begin(int64_t r) const { return bounded(layout == Layout::kOffsets ? offsets[r] : packed_info[2 * r]); }
  LN_HD int64_t end(int64_t r) const {
    return bounded(layout == Layout::kOffsets ? offsets[r + 1] : packed_info[2 * r] + packed_info[2 * r + 1]);
  }
};

// Real: what is summed or multiplied in, float or double.
template <typename Real, bool kProduct>
struct Scan {
  using State = Real;

  const float* values;  // [N]
  bool exclusive;
  float* out;  // [N]

  LN_HD static State identity() { return kProduct ? Real(1) : Real(0); }
  LN_HD static State combine(State earlier, State later) { return kProduct ? earlier * later : earlier + later; }
  LN_HD State load(int64_t i, int64_t before) const {
    const int64_t from = exclusive ? before : i;
    return from == kNone ? identity() : State(values[from]);
  }
  LN_HD void store(int64_t i, int64_t, State state) const { out[i] = float(state); }
};

template <typename Real>
struct Affine {
  Real factor, summand;
};

// d loss / d value k = (product of the values before k) * S_k, where g is d loss / d product and
//   S_k = g_k + value_{k+1} S_{k+1}       inclusive
//   S_k = g_{k+1} + value_{k+1} S_{k+1}   exclusive, 0 for the last
// No division, so it holds where values are 0. S is a scan of affine maps from the segment's end: this struct is walked in
// the direction opposite to the product's. Where S is 0 nothing depends on the value, and its gradient is 0 even if the
// product before it overflowed.
template <typename Real>
struct ScanProductBackward {
  using State = Affine<Real>;

  const float* grad;      // [N]
  const float* values;    // [N]
  const float* products;  // [N], what the forward pass wrote
  bool exclusive;
  float* out;  // [N]

  LN_HD static State identity() { return {Real(1), Real(0)}; }
  LN_HD static State combine(State earlier, State later) {
    const Real carried = earlier.summand == Real(0) ? Real(0) : later.factor * earlier.summand;
    return {earlier.factor * later.factor, later.summand + carried};
  }
  LN_HD State load(int64_t i, int64_t before) const {
    if (before == kNone) return {Real(0), exclusive ? Real(0) : Real(grad[i])};
    return {Real(values[before]), Real(grad[exclusive ? before : i])};
  }
  LN_HD void store(int64_t i, int64_t after, State state) const {
    const Real product = exclusive ? Real(products[i]) : after == kNone ? Real(1) : Real(products[after]);
    out[i] = state.summand == Real(0) ? 0.0f : float(product * state.summand);
  }
};

}  // namespace lightning_nerf::scan
