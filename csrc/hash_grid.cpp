#include "hash_grid.h"

#include <algorithm>
#include <vector>

// The arithmetic over a block of samples is also compiled for AVX2, chosen when the library loads. No fused multiply-add,
// so the bits are the same on every machine.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define LN_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define LN_CLONES
#endif

namespace lightning_nerf::hash_grid {
namespace {

constexpr int kBlock = 128;       // samples whose table rows are computed ahead of the gathers
constexpr int64_t kChunk = 4096;  // samples that pass through all levels together: these and one level stay in L2

std::vector<Level> read_levels(const Arguments& a) {
  std::vector<Level> result(a.n_levels);
  const int32_t* rows = data<int32_t>(a.levels);
  for (size_t l = 0; l < result.size(); ++l) {
    const int32_t* row = rows + 3 * l;
    const bool valid = a.dims == 2   ? read_level<2>(row, a.n_rows, result[l])
                       : a.dims == 3 ? read_level<3>(row, a.n_rows, result[l])
                                     : read_level<4>(row, a.n_rows, result[l]);
    STD_TORCH_CHECK(
        valid, "levels: level ", l, " (resolution ", row[0], ", offset ", row[1], ", size ", row[2],
        ") does not fit a table of ", a.n_rows, " rows, or is hashed and its size is no power of two");
  }
  return result;
}

// Positions of a chunk, clamped, samples innermost, padded with zeros to whole blocks.
template <int D>
struct Positions {
  std::vector<float> x = std::vector<float>(D * kChunk);  // [D, kChunk]

  const float* block(int64_t begin) const { return x.data() + begin; }

  void load(const float* positions, int64_t n) {  // [n, D]
    for (int d = 0; d < D; ++d) {
      float* out = x.data() + d * kChunk;
      for (int64_t i = 0; i < n; ++i) out[i] = clamp_to_unit(positions[i * D + d]);
      std::fill(out + n, out + (n + kBlock - 1) / kBlock * kBlock, 0.0f);
    }
  }
};

template <int D>
struct Corners {
  static constexpr int kCount = 1 << D;
  uint32_t row[kCount][kBlock];
  float weight[kCount][kBlock];
};

template <int D, bool Hashed>
LN_CLONES void locate_block(const float* x, const Level& level, Corners<D>& corners) {  // x [D, kBlock], stride kChunk
  for (int i = 0; i < kBlock; ++i) {
    float point[D];
    for (int d = 0; d < D; ++d) point[d] = x[d * kChunk + i];
    const Cell<D> cell = locate<D>(point, level);
#pragma GCC unroll 16
    for (int c = 0; c < Corners<D>::kCount; ++c) {
      corners.row[c][i] = corner_row<D, Hashed>(cell, level, c);
      corners.weight[c][i] = corner_weight<D>(cell, c);
    }
  }
}

template <int D>
void locate_block(const float* x, const Level& level, Corners<D>& corners) {
  if (level.hashed) {
    locate_block<D, true>(x, level, corners);
  } else {
    locate_block<D, false>(x, level, corners);
  }
}

template <int D, int F>
void interpolate_block(
    const float* table,                                                  // [rows, F] of the level
    const Corners<D>& corners, int64_t n, float* out, int64_t stride) {  // [n, F]
  for (int64_t i = 0; i < n; ++i) {
    float sum[F] = {};
    for (int c = 0; c < Corners<D>::kCount; ++c) {
      const float* row = table + size_t(corners.row[c][i]) * F;
      for (int f = 0; f < F; ++f) sum[f] += corners.weight[c][i] * row[f];
    }
    for (int f = 0; f < F; ++f) out[i * stride + f] = sum[f];
  }
}

template <int D, int F>
void scatter_block(
    const float* grad, int64_t stride,  // [n, F]
    const Corners<D>& corners, int64_t n,
    float* __restrict grad_table) {  // [rows, F] of the level
  for (int64_t i = 0; i < n; ++i) {
    float g[F];
    bool zero = true;
    for (int f = 0; f < F; ++f) {
      g[f] = grad[i * stride + f];
      zero &= g[f] == 0.0f;
    }
    if (zero) continue;
    for (int c = 0; c < Corners<D>::kCount; ++c) {
      float* row = grad_table + size_t(corners.row[c][i]) * F;
      const float weight = corners.weight[c][i];
      for (int f = 0; f < F; ++f) row[f] += weight * g[f];
    }
  }
}

// corners.weight becomes d loss / d corner weight.
template <int D, int F>
void grad_weights_block(
    const float* grad, int64_t stride,  // [n, F]
    const float* table,                 // [rows, F] of the level
    int64_t n, Corners<D>& corners) {
  for (int64_t i = 0; i < n; ++i) {
    for (int c = 0; c < Corners<D>::kCount; ++c) {
      const float* row = table + size_t(corners.row[c][i]) * F;
      float sum = 0.0f;
      for (int f = 0; f < F; ++f) sum += grad[i * stride + f] * row[f];
      corners.weight[c][i] = sum;
    }
  }
}

template <int D>
LN_CLONES void grad_positions_block(
    const float* x,  // [D, kBlock], stride kChunk
    const Level& level, const Corners<D>& grad,
    float* out) {  // [D, kBlock], stride kChunk, added to
  for (int i = 0; i < kBlock; ++i) {
    float point[D];
    for (int d = 0; d < D; ++d) point[d] = x[d * kChunk + i];
    const Cell<D> cell = locate<D>(point, level);
    float slope[D] = {};
#pragma GCC unroll 16
    for (int c = 0; c < Corners<D>::kCount; ++c)
      for (int d = 0; d < D; ++d) slope[d] += grad.weight[c][i] * corner_slope<D>(cell, c, d);
    for (int d = 0; d < D; ++d) out[d * kChunk + i] += level.scale * slope[d];
  }
}

// Samples per parallel iteration: enough iterations for every thread. The bits do not depend on it.
int64_t chunk_size(int64_t n) {
  const int64_t share = n / (4 * int64_t(torch::stable::get_num_threads())) / kBlock * kBlock;
  return std::clamp<int64_t>(share, kBlock, kChunk);
}

template <int D, int F>
void interpolate_all(const float* positions, int64_t n, const float* table, const std::vector<Level>& levels, float* out) {
  const int64_t chunk = chunk_size(n), stride = int64_t(levels.size()) * F;
  torch::stable::parallel_for(0, (n + chunk - 1) / chunk, 1, [&](int64_t first, int64_t last) {
    Positions<D> x;
    Corners<D> corners;
    for (int64_t begin = first * chunk; begin < std::min(n, last * chunk); begin += chunk) {
      const int64_t count = std::min(chunk, n - begin);
      x.load(positions + begin * D, count);
      for (size_t l = 0; l < levels.size(); ++l) {
        for (int64_t i = 0; i < count; i += kBlock) {
          locate_block<D>(x.block(i), levels[l], corners);
          interpolate_block<D, F>(
              table + levels[l].offset * F, corners, std::min<int64_t>(kBlock, count - i),
              out + (begin + i) * stride + l * F, stride);
        }
      }
    }
  });
}

// 0 .. n-1 such that equal contiguous parts are equally expensive: fine levels miss the caches, coarse ones don't.
std::vector<int64_t> interleaved(int64_t n) {
  std::vector<int64_t> order;
  int bits = 0;
  while ((int64_t(1) << bits) < n) ++bits;
  for (int64_t i = 0; i < int64_t(1) << bits; ++i) {
    int64_t reversed = 0;
    for (int b = 0; b < bits; ++b) reversed |= ((i >> b) & 1) << (bits - 1 - b);
    if (reversed < n) order.push_back(reversed);
  }
  return order;
}

// Parallel over levels: a level's slice is summed by one thread, in the order of the samples.
template <int D, int F>
void backward_table(
    const float* grad, const float* positions, int64_t n, const std::vector<Level>& levels, float* grad_table) {
  const int64_t stride = int64_t(levels.size()) * F;
  const std::vector<int64_t> order = interleaved(int64_t(levels.size()));
  torch::stable::parallel_for(0, int64_t(order.size()), 1, [&](int64_t first, int64_t last) {
    Positions<D> x;
    Corners<D> corners;
    for (int64_t begin = 0; begin < n; begin += kChunk) {
      const int64_t count = std::min(kChunk, n - begin);
      x.load(positions + begin * D, count);
      for (int64_t o = first; o < last; ++o) {
        const int64_t l = order[o];
        for (int64_t i = 0; i < count; i += kBlock) {
          locate_block<D>(x.block(i), levels[l], corners);
          scatter_block<D, F>(
              grad + (begin + i) * stride + l * F, stride, corners, std::min<int64_t>(kBlock, count - i),
              grad_table + levels[l].offset * F);
        }
      }
    }
  });
}

template <int D, int F>
void backward_positions(
    const float* grad, const float* positions, int64_t n, const float* table, const std::vector<Level>& levels,
    float* grad_positions) {
  const int64_t chunk = chunk_size(n), stride = int64_t(levels.size()) * F;
  torch::stable::parallel_for(0, (n + chunk - 1) / chunk, 1, [&](int64_t first, int64_t last) {
    Positions<D> x;
    Corners<D> corners;
    std::vector<float> sum(D * kChunk);
    for (int64_t begin = first * chunk; begin < std::min(n, last * chunk); begin += chunk) {
      const int64_t count = std::min(chunk, n - begin);
      x.load(positions + begin * D, count);
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (size_t l = 0; l < levels.size(); ++l) {
        for (int64_t i = 0; i < count; i += kBlock) {
          locate_block<D>(x.block(i), levels[l], corners);
          grad_weights_block<D, F>(
              grad + (begin + i) * stride + l * F, stride, table + levels[l].offset * F,
              std::min<int64_t>(kBlock, count - i), corners);
          grad_positions_block<D>(x.block(i), levels[l], corners, sum.data() + i);
        }
      }
      for (int64_t i = 0; i < count; ++i)
        for (int d = 0; d < D; ++d) {
          const int64_t at = (begin + i) * D + d;
          grad_positions[at] = inside_unit(positions[at]) ? sum[d * kChunk + i] : 0.0f;
        }
    }
  });
}

// Half-precision tables pass through a float copy: they exist for CUDA, and are tested here.
Tensor to_float(const Tensor& t) { return to_dtype(t, ScalarType::Float); }

void forward(const Tensor& like, const Arguments& a, Tensor& out) {
  const Tensor rows = to_float(a.rows);
  const std::vector<Level> levels = read_levels(a);
  const bool is_float = out.scalar_type() == ScalarType::Float;
  Tensor sums = is_float ? out : empty(like, {a.n, a.n_levels * a.features}, ScalarType::Float);
  for_dims_and_features(a, [&](auto d, auto f) {
    interpolate_all<d(), f()>(data<float>(a.positions), a.n, data<float>(rows), levels, mutable_data<float>(sums));
  });
  if (!is_float) torch::stable::copy_(out, sums);
}

// Deterministic in any case.
void backward(const Tensor&, const Arguments& a, const Tensor& grad_any, const Gradients& out) {
  const std::vector<Level> levels = read_levels(a);
  const Tensor grad = to_float(grad_any);
  const Tensor rows = out.positions ? to_float(a.rows) : a.rows;
  const float* positions = data<float>(a.positions);
  for_dims_and_features(a, [&](auto d, auto f) {
    if (out.table) backward_table<d(), f()>(data<float>(grad), positions, a.n, levels, out.table);
    if (out.positions)
      backward_positions<d(), f()>(data<float>(grad), positions, a.n, data<float>(rows), levels, out.positions);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "hash_grid(Tensor positions, Tensor table, Tensor levels, Tensor? working, ScalarType dtype, bool deterministic) "
      "-> Tensor");
  m.def(
      "hash_grid_backward(Tensor grad, Tensor positions, Tensor table, Tensor levels, Tensor? working, "
      "bool for_positions, bool for_table, bool deterministic) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("hash_grid", TORCH_BOX(&hash_grid<forward>));
  m.impl("hash_grid_backward", TORCH_BOX(&hash_grid_backward<backward>));
}

}  // namespace lightning_nerf::hash_grid
