// NeRF's positional encoding: Mildenhall et al., ECCV 2020, equation 4.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::frequency {

constexpr int kMaxFrequencies = 64;
constexpr int kMaxDims = 1 << 20;  // so that a row has less than 2^31 numbers

// A row of the result: x (only with include_input), then all sines, then all cosines; frequency by frequency, axis by axis.
struct Layout {
  int dims, n_frequencies;
  bool include_input;
  float scale;

  LN_HD int pairs() const { return n_frequencies * dims; }
  LN_HD int sines() const { return include_input ? dims : 0; }  // where the sines begin
  LN_HD int cosines() const { return sines() + pairs(); }
  LN_HD int width() const { return sines() + 2 * pairs(); }
};

// How many of n rows are encoded. count [1]; null: all.
LN_HD int64_t used_rows(int64_t n, const int* count) {
  if (count == nullptr) return n;
  const int64_t used = *count;
  return used < 0 ? 0 : used < n ? used : n;
}

}  // namespace lightning_nerf::frequency
