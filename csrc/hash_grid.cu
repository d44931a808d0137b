#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda.cuh"
#include "hash_grid.cuh"

namespace lightning_nerf {
namespace {

// A thread serves the levels that fill 8 values of its sample's output row (in float32 one 32-byte sector). Groups of
// levels are the slow grid dimension: while blocks of one group run, only its part of the table competes for the L2 cache.
constexpr int kValues = 8;
template <int F>
constexpr int kLevels = kValues / F;

constexpr unsigned kWarp = 0xFFFFFFFFu;
constexpr int kMaxRuns = 24;  // with more runs of samples of one cell in a warp, summing them first does not pay

// F values that are loaded and stored together.
template <typename T, int F>
struct alignas(F * sizeof(T) < 16 ? F * sizeof(T) : 16) Features {
  T value[F];
};

template <int F, typename T>
__device__ __forceinline__ Features<T, F> load(const T* __restrict__ p) {
  return *reinterpret_cast<const Features<T, F>*>(p);
}

// The levels of this block, read once. All threads of the block must come here.
template <int D, int F>
__device__ __forceinline__ void share_levels(
    const int32_t* __restrict__ levels,  // [n_levels, 3]
    int n_levels, int64_t n_rows, Level (&shared)[kLevels<F>]) {
  const int l = blockIdx.y * kLevels<F> + threadIdx.x;
  if (threadIdx.x < kLevels<F> && l < n_levels && !read_level<D>(levels + 3 * l, n_rows, shared[threadIdx.x])) __trap();
  __syncthreads();
}

template <int D, int F, bool Hashed, typename T>
__device__ __forceinline__ void interpolate(
    const T* __restrict__ table,  // [n_rows, F]
    const Level& level, const Cell<D>& cell, float* sum) {  // sum [F]
#pragma unroll
  for (int c = 0; c < 1 << D; ++c) {
    const Features<T, F> row = load<F>(table + (level.offset + corner_row<D, Hashed>(cell, level, c)) * F);
    const float weight = corner_weight<D>(cell, c);
#pragma unroll
    for (int f = 0; f < F; ++f) sum[f] += weight * float(row.value[f]);
  }
}

template <int D, int F, typename T>
__global__ void forward_kernel(
    const float* __restrict__ positions,  // [n, D]
    const T* __restrict__ table,          // [n_rows, F]
    const int32_t* __restrict__ levels,   // [n_levels, 3]
    int64_t n, int64_t n_rows, int n_levels,
    T* __restrict__ out) {  // [n, n_levels, F]
  __shared__ Level shared[kLevels<F>];
  share_levels<D, F>(levels, n_levels, n_rows, shared);
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= n) return;
  float x[D];
  for (int d = 0; d < D; ++d) x[d] = clamp_to_unit(positions[i * D + d]);

  const int first = blockIdx.y * kLevels<F>;
  float sum[kValues] = {};
#pragma unroll
  for (int k = 0; k < kLevels<F>; ++k) {
    if (first + k >= n_levels) break;
    const Level& level = shared[k];
    const Cell<D> cell = locate<D>(x, level);
    if (level.hashed) {
      interpolate<D, F, true>(table, level, cell, sum + k * F);
    } else {
      interpolate<D, F, false>(table, level, cell, sum + k * F);
    }
  }

  T* row = out + (i * n_levels + first) * F;
  if (n_levels % kLevels<F> == 0) {  // rows of whole groups: all stores are aligned
    using Store = Features<T, 16 / sizeof(T)>;
    constexpr int width = 16 / sizeof(T);
#pragma unroll
    for (int v = 0; v < kValues; v += width) {
      Store store;
#pragma unroll
      for (int j = 0; j < width; ++j) store.value[j] = T(sum[v + j]);
      *reinterpret_cast<Store*>(row + v) = store;
    }
  } else {
#pragma unroll
    for (int v = 0; v < kValues; ++v)
      if (first + v / F < n_levels) row[v] = T(sum[v]);
  }
}

// One atomic per 8 or 16 bytes from Hopper on.
template <int F>
__device__ __forceinline__ void atomic_add(float* row, const float* value) {  // row [F], aligned to its size
#if __CUDA_ARCH__ >= 900
  if constexpr (F == 1) {
    atomicAdd(row, value[0]);
  } else if constexpr (F == 2) {
    atomicAdd(reinterpret_cast<float2*>(row), make_float2(value[0], value[1]));
  } else {
#pragma unroll
    for (int f = 0; f < F; f += 4)
      atomicAdd(reinterpret_cast<float4*>(row + f), make_float4(value[f], value[f + 1], value[f + 2], value[f + 3]));
  }
#else
#pragma unroll
  for (int f = 0; f < F; ++f) atomicAdd(row + f, value[f]);
#endif
}

// Runs of neighbouring lanes whose samples lie in one cell: on coarse levels most of a ray's samples do.
template <int D>
struct Runs {
  int count;
  bool head;  // this lane is the first of its run
  int end;    // one past the last lane of this lane's run

  __device__ __forceinline__ explicit Runs(const Cell<D>& cell) {
    const int lane = threadIdx.x & 31;
    head = lane == 0;
    for (int d = 0; d < D; ++d) {  // multipliers are odd or strides: equal lower terms mean the same cell
      const uint32_t term = cell.axis[d].term[0];
      head |= __shfl_up_sync(kWarp, term, 1) != term;
    }
    const unsigned heads = __ballot_sync(kWarp, head);
    const unsigned later = lane == 31 ? 0u : heads & (kWarp << (lane + 1));
    count = __popc(heads);
    end = later == 0u ? 32 : __ffs(later) - 1;
  }

  // The head gets the sum over its run.
  __device__ __forceinline__ float sum(float value) const {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const float other = __shfl_down_sync(kWarp, value, offset);
      if (lane + offset < end) value += other;
    }
    return value;
  }
};

template <int D, int F, typename T>
__global__ void backward_table_kernel(
    const T* __restrict__ grad,           // [n, n_levels, F]
    const float* __restrict__ positions,  // [n, D]
    const int32_t* __restrict__ levels,   // [n_levels, 3]
    int64_t n, int64_t n_rows, int n_levels,
    float* __restrict__ grad_table) {  // [n_rows, F], zero before
  __shared__ Level shared[kLevels<F>];
  share_levels<D, F>(levels, n_levels, n_rows, shared);
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  const bool exists = i < n;  // lanes without a sample stay: the warp sums together
  float x[D];
  for (int d = 0; d < D; ++d) x[d] = exists ? clamp_to_unit(positions[i * D + d]) : 0.0f;

  const int first = blockIdx.y * kLevels<F>;
#pragma unroll 1
  for (int k = 0; k < kLevels<F> && first + k < n_levels; ++k) {
    const Level& level = shared[k];
    float g[F] = {};
    bool zero = true;
    if (exists) {
      const Features<T, F> loaded = load<F>(grad + (i * n_levels + first + k) * F);
#pragma unroll
      for (int f = 0; f < F; ++f) {
        g[f] = float(loaded.value[f]);
        zero &= g[f] == 0.0f;
      }
    }
    if (__all_sync(kWarp, zero)) continue;  // dropped samples cost nothing
    const Cell<D> cell = locate<D>(x, level);
    const Runs<D> runs(cell);
    const bool summed = runs.count <= kMaxRuns;  // the same for all lanes
#pragma unroll
    for (int c = 0; c < 1 << D; ++c) {
      const uint32_t row = level.hashed ? corner_row<D, true>(cell, level, c) : corner_row<D, false>(cell, level, c);
      const float weight = corner_weight<D>(cell, c);
      float value[F];
#pragma unroll
      for (int f = 0; f < F; ++f) {
        value[f] = weight * g[f];
        if (summed) value[f] = runs.sum(value[f]);
      }
      if (summed ? runs.head : !zero) atomic_add<F>(grad_table + (level.offset + row) * F, value);
    }
  }
}

template <int D, int F, typename T>
__global__ void backward_positions_kernel(
    const T* __restrict__ grad,           // [n, n_levels, F]
    const float* __restrict__ positions,  // [n, D]
    const T* __restrict__ table,          // [n_rows, F]
    const int32_t* __restrict__ levels,   // [n_levels, 3]
    int64_t n, int64_t n_rows, int n_levels,
    float* __restrict__ grad_positions) {  // [n, D]
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= n) return;
  float x[D], sum[D] = {};
  for (int d = 0; d < D; ++d) x[d] = clamp_to_unit(positions[i * D + d]);
#pragma unroll 1
  for (int l = 0; l < n_levels; ++l) {
    const Features<T, F> g = load<F>(grad + (i * n_levels + l) * F);
    bool zero = true;
#pragma unroll
    for (int f = 0; f < F; ++f) zero &= float(g.value[f]) == 0.0f;
    if (zero) continue;
    Level level;
    if (!read_level<D>(levels + 3 * l, n_rows, level)) __trap();
    const Cell<D> cell = locate<D>(x, level);
    float slope[D] = {};
#pragma unroll
    for (int c = 0; c < 1 << D; ++c) {
      const uint32_t at = level.hashed ? corner_row<D, true>(cell, level, c) : corner_row<D, false>(cell, level, c);
      const Features<T, F> row = load<F>(table + (level.offset + at) * F);
      float grad_weight = 0.0f;
#pragma unroll
      for (int f = 0; f < F; ++f) grad_weight += float(g.value[f]) * float(row.value[f]);
#pragma unroll
      for (int d = 0; d < D; ++d) slope[d] += grad_weight * corner_slope<D>(cell, c, d);
    }
    for (int d = 0; d < D; ++d) sum[d] += level.scale * slope[d];
  }
  for (int d = 0; d < D; ++d) grad_positions[i * D + d] = inside_unit(positions[i * D + d]) ? sum[d] : 0.0f;
}

// body(D, F, T()) for the positions' dimensions, the table's features and its type.
template <typename Body>
void for_shape_and_type(const Tensor& positions, const Tensor& table, const Body& body) {
  const bool known = for_shape(positions.size(1), table.size(1), [&](auto d, auto f) {
    switch (table.scalar_type()) {
      case ScalarType::Float: return body(d, f, float());
      case ScalarType::Half: return body(d, f, __half());
      case ScalarType::BFloat16: return body(d, f, __nv_bfloat16());
      default: STD_TORCH_CHECK(false, "table: expected float32, float16 or bfloat16");
    }
  });
  STD_TORCH_CHECK(known, "expected 2, 3 or 4 dimensions and 1, 2, 4 or 8 features");
}

// Loads of whole rows need rows aligned to their size; a view into a flat buffer may not be.
Tensor aligned(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0 ? t : torch::stable::clone(t);
}

dim3 grid(int64_t n, int64_t n_levels, int levels_per_block) {
  return dim3(blocks(n), blocks(n_levels, levels_per_block));
}

void check_arguments(const Tensor& positions, const Tensor& table, const Tensor& levels) {
  check_float(positions, "positions");
  check(table, table.scalar_type(), "table");
  check_int(levels, "levels");
}

Tensor hash_grid(const Tensor& positions, const Tensor& table_any, const Tensor& levels) {
  check_arguments(positions, table_any, levels);
  const Launch launch(positions);
  const Tensor table = aligned(table_any);
  const int64_t n = positions.size(0), n_levels = levels.size(0);
  Tensor out = empty(table, {n, n_levels * table.size(1)}, table.scalar_type());
  if (n == 0 || n_levels == 0) return out;
  for_shape_and_type(positions, table, [&](auto d, auto f, auto type) {
    using T = decltype(type);
    forward_kernel<d(), f(), T><<<grid(n, n_levels, kLevels<f()>), kThreads, 0, launch.stream>>>(
        data<float>(positions), static_cast<const T*>(table.data_ptr()), data<int32_t>(levels), n, table.size(0),
        int(n_levels), static_cast<T*>(out.data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

std::tuple<Tensor, Tensor> hash_grid_backward(
    const Tensor& grad_any, const Tensor& positions, const Tensor& table_any, const Tensor& levels, bool for_positions,
    bool for_table) {
  check_arguments(positions, table_any, levels);
  check(grad_any, table_any.scalar_type(), "grad");
  const Launch launch(positions);
  const Tensor grad = aligned(grad_any), table = aligned(table_any);
  const int64_t n = positions.size(0), n_rows = table.size(0), n_levels = levels.size(0);
  Tensor grad_positions = for_positions
      ? torch::stable::new_zeros(positions, {n, positions.size(1)}, ScalarType::Float)
      : empty(positions, {0}, ScalarType::Float);
  Tensor grad_table = for_table ? torch::stable::new_zeros(table, {n_rows, table.size(1)}, ScalarType::Float)
                                : empty(table, {0}, table.scalar_type());
  if (n > 0 && n_levels > 0) {
    for_shape_and_type(positions, table, [&](auto d, auto f, auto type) {
      using T = decltype(type);
      const T* grad_data = static_cast<const T*>(grad.data_ptr());
      if (for_table) {
        backward_table_kernel<d(), f(), T><<<grid(n, n_levels, kLevels<f()>), kThreads, 0, launch.stream>>>(
            grad_data, data<float>(positions), data<int32_t>(levels), n, n_rows, int(n_levels),
            mutable_data<float>(grad_table));
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      }
      if (for_positions) {
        backward_positions_kernel<d(), f(), T><<<blocks(n), kThreads, 0, launch.stream>>>(
            grad_data, data<float>(positions), static_cast<const T*>(table.data_ptr()), data<int32_t>(levels), n, n_rows,
            int(n_levels), mutable_data<float>(grad_positions));
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      }
    });
  }
  if (for_table && table.scalar_type() != ScalarType::Float)
    return {grad_positions, torch::stable::to(grad_table, table.scalar_type())};
  return {grad_positions, grad_table};
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("hash_grid", TORCH_BOX(&lightning_nerf::hash_grid));
  m.impl("hash_grid_backward", TORCH_BOX(&lightning_nerf::hash_grid_backward));
}
