// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). In the namespace that all ops
// share: draw_rays and occupancy draw too.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf {

struct Philox {
  uint32_t word[4];
};

LN_HD Philox philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(0xD2511F53u) * c0;
    const uint64_t product1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(product1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(product1);
    c2 = uint32_t(product0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Row `row` of random_uniform: k numbers in [0, 1), multiples of 2^-24.
LN_HD void random_uniform_row(
    const int64_t* key,  // [3] seed, rank, step
    uint32_t stream, int64_t row, int64_t k,
    float* out) {  // [k]
  for (int64_t block = 0; 4 * block < k; ++block) {
    const Philox random =
        philox(uint32_t(row), uint32_t(block), uint32_t(key[2]), stream, uint32_t(key[0]), uint32_t(key[1]));
    for (int i = 0; i < 4 && 4 * block + i < k; ++i) out[4 * block + i] = float(random.word[i] >> 8) * (1.0f / 16777216.0f);
  }
}

}  // namespace lightning_nerf
