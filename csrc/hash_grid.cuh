// Multiresolution hash encoding (Mueller, Evans, Schied, Keller, "Instant Neural Graphics Primitives with a
// Multiresolution Hash Encoding", SIGGRAPH 2022): where a point lies in a level's grid, and which table rows it mixes.
#pragma once
#include <type_traits>

#include "host_device.cuh"

namespace lightning_nerf::hash_grid {

struct Level {
  int64_t offset;          // first table row of the level
  float scale;             // resolution - 1: cells per unit of position
  uint32_t multiplier[4];  // per axis: stride of a dense level, prime of a hashed one
  uint32_t mask;           // size - 1, for a hashed level
  bool hashed;
};

// False for a level that would reach outside of the table.
template <int D>
LN_HD bool read_level(const int32_t* row, int64_t n_rows, Level& level) {  // row [3] resolution, offset, size
  constexpr uint32_t primes[4] = {1u, 2654435761u, 805459861u, 3674653429u};
  const int64_t resolution = row[0], offset = row[1], size = row[2];
  if (resolution < 1 || offset < 0 || size < 1 || offset + size > n_rows) return false;
  level.offset = offset;
  level.scale = float(resolution - 1);
  level.mask = uint32_t(size - 1);
  int64_t vertices = 1;  // stays below 2^62: it is multiplied only while it is at most size
  for (int d = 0; d < D; ++d) {
    level.multiplier[d] = uint32_t(vertices);
    if (vertices <= size) vertices *= resolution + 1;
  }
  level.hashed = vertices > size;
  if (!level.hashed) return true;
  for (int d = 0; d < D; ++d) level.multiplier[d] = primes[d];
  return (size & (size - 1)) == 0;
}

LN_HD float clamp_to_unit(float x) {  // NaN becomes 0
  x = x > 0.0f ? x : 0.0f;
  return x < 1.0f ? x : 1.0f;
}

LN_HD bool inside_unit(float x) { return x >= 0.0f && x <= 1.0f; }  // where the clamp passes gradients; NaN: no

// x * scale + 0.5, rounded twice as the reference does: a fused result could fall into the neighboring cell.
LN_HD float grid_coordinate(float x, float scale) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(__fmul_rn(x, scale), 0.5f);
#else
  return x * scale + 0.5f;
#endif
}

// One axis of a point's cell, for its lower (0) and upper (1) vertex.
struct CellAxis {
  uint32_t term[2];  // vertex * multiplier
  float weight[2];
};

template <int D>
struct Cell {
  CellAxis axis[D];
};

// Vertices run from 0 to resolution: x in [0, 1] reaches 0.5 to resolution - 0.5.
template <int D>
LN_HD Cell<D> locate(const float* x, const Level& level) {  // x [D] in [0, 1]
  Cell<D> cell;
  for (int d = 0; d < D; ++d) {
    const float coordinate = grid_coordinate(x[d], level.scale);
    const int32_t vertex = int32_t(coordinate);
    const float fraction = coordinate - float(vertex);
    const uint32_t term = uint32_t(vertex) * level.multiplier[d];
    cell.axis[d] = {{term, term + level.multiplier[d]}, {1.0f - fraction, fraction}};
  }
  return cell;
}

// Corner c takes the upper vertex of axis d where bit d of c is set. Returns a row of the level.
template <int D, bool Hashed>
LN_HD uint32_t corner_row(const Cell<D>& cell, const Level& level, int c) {
  uint32_t row = 0;
  for (int d = 0; d < D; ++d) {
    const uint32_t term = cell.axis[d].term[(c >> d) & 1];
    row = Hashed ? row ^ term : row + term;
  }
  return Hashed ? row & level.mask : row;
}

template <int D>
LN_HD float corner_weight(const Cell<D>& cell, int c) {
  float weight = 1.0f;
  for (int d = 0; d < D; ++d) weight *= cell.axis[d].weight[(c >> d) & 1];
  return weight;
}

// One of the cell's two faces across axis 0, at the lower (0) or the upper (1) vertices: the even corners of the result.
template <int D>
LN_HD Cell<D> face(Cell<D> cell, int side) {
  cell.axis[0].term[0] = cell.axis[0].term[side ? 1 : 0];
  cell.axis[0].weight[0] = cell.axis[0].weight[side ? 1 : 0];
  return cell;
}

// d corner_weight / d grid coordinate along `axis`.
template <int D>
LN_HD float corner_slope(const Cell<D>& cell, int c, int axis) {
  float slope = (c >> axis) & 1 ? 1.0f : -1.0f;
  for (int d = 0; d < D; ++d)
    if (d != axis) slope *= cell.axis[d].weight[(c >> d) & 1];
  return slope;
}

// body(D, F) with the dimensions and features as compile-time constants; false where there is no kernel for them.
template <typename Body>
bool for_shape(int64_t dims, int64_t features, const Body& body) {
  const auto with_dims = [&](auto d) {
    switch (features) {
      case 1: return body(d, std::integral_constant<int, 1>()), true;
      case 2: return body(d, std::integral_constant<int, 2>()), true;
      case 4: return body(d, std::integral_constant<int, 4>()), true;
      case 8: return body(d, std::integral_constant<int, 8>()), true;
      default: return false;
    }
  };
  switch (dims) {
    case 2: return with_dims(std::integral_constant<int, 2>());
    case 3: return with_dims(std::integral_constant<int, 3>());
    case 4: return with_dims(std::integral_constant<int, 4>());
    default: return false;
  }
}

#ifdef __CUDACC__

// Two neighboring lanes share a sample: the even lane takes the lower face of its cell across axis 0, the odd lane the
// upper one. The rows at the ends of an edge along axis 0 are r and r + 1 on a dense level and, as that axis' prime is 1,
// differ in the low bits of r on a hashed one: mostly one transaction of 32 bytes (in 3 of 4 cells for rows of 8 bytes).
__device__ __forceinline__ int pair_side() { return threadIdx.x & 1; }

// F values that are loaded and stored together.
template <typename T, int F>
struct alignas(F * sizeof(T) < 16 ? F * sizeof(T) : 16) Features {
  T value[F];
};

template <int F, typename T>
__device__ __forceinline__ Features<T, F> load(const T* __restrict__ p) {
  return *reinterpret_cast<const Features<T, F>*>(p);
}

// Levels `first` to `first + count` for the block. All of its threads must come here.
template <int D>
__device__ __forceinline__ void read_levels(
    const int32_t* __restrict__ levels,  // [n_levels, 3]
    int first, int count, int64_t n_rows,
    Level* shared) {  // [count]
  for (int l = threadIdx.x; l < count; l += blockDim.x)
    if (!read_level<D>(levels + 3 * (first + l), n_rows, shared[l])) __trap();
  __syncthreads();
}

template <int D, int F, bool Hashed, int Step, typename T>
__device__ __forceinline__ void interpolate_corners(
    const T* __restrict__ table,  // [n_rows, F]
    const Level& level, const Cell<D>& cell, float* sum) {
  const T* rows = table + level.offset * F;
#pragma unroll
  for (int c = 0; c < 1 << D; c += Step) {
    const Features<T, F> row = load<F>(rows + int64_t(corner_row<D, Hashed>(cell, level, c)) * F);
    const float weight = corner_weight<D>(cell, c);
#pragma unroll
    for (int f = 0; f < F; ++f) sum[f] += weight * float(row.value[f]);
  }
}

// Adds to sum [F] a level's features at a point: of all corners of its cell (Step = 1), or of a face's (Step = 2).
template <int D, int F, int Step = 1, typename T>
__device__ __forceinline__ void interpolate(
    const T* __restrict__ table,  // [n_rows, F]
    const Level& level, const Cell<D>& cell, float* sum) {
  if (level.hashed) {
    interpolate_corners<D, F, true, Step>(table, level, cell, sum);
  } else {
    interpolate_corners<D, F, false, Step>(table, level, cell, sum);
  }
}

// As interpolate, for two neighboring lanes with one point that want a level each, the even lane `levels[0]`: each takes
// one face of both cells and gets its own level's features. All lanes in `mask` must come, which splits no pair.
template <int D, int F, typename T>
__device__ __forceinline__ void interpolate_pair(
    const T* __restrict__ table,  // [n_rows, F]
    const Level* levels,          // [2]
    const float* x,               // [D] in [0, 1]
    float* sum, unsigned mask = kFullWarp) {
  const int side = pair_side();
  float part[2][F] = {};
#pragma unroll
  for (int l = 0; l < 2; ++l) interpolate<D, F, 2>(table, levels[l], face<D>(locate<D>(x, levels[l]), side), part[l]);
#pragma unroll
  for (int f = 0; f < F; ++f)
    sum[f] += (side ? part[1][f] : part[0][f]) + __shfl_xor_sync(mask, side ? part[0][f] : part[1][f], 1);
}

// A thread's gradients for the rows of a face, summed as long as its samples stay in one cell, as neighbors on a ray do on
// all but the finest levels. add_row(row, value [F]) takes the sums.
template <int D, int F>
struct FaceSum {
  uint32_t term[D];  // of the face, as its CellAxis::term[0]
  float value[1 << (D - 1)][F];
  bool filled = false;

  template <typename AddRow>
  __device__ __forceinline__ void add(
      const Level& level, const Cell<D>& face, const float* grad, const AddRow& add_row) {  // grad [F]
    bool same = filled;  // multipliers are odd or strides: equal lower terms mean the same cell
#pragma unroll
    for (int d = 0; d < D; ++d) same &= face.axis[d].term[0] == term[d];
    if (!same) {
      flush(level, add_row);
      filled = true;
#pragma unroll
      for (int d = 0; d < D; ++d) term[d] = face.axis[d].term[0];
#pragma unroll
      for (int c = 0; c < 1 << (D - 1); ++c)
#pragma unroll
        for (int f = 0; f < F; ++f) value[c][f] = 0.0f;
    }
#pragma unroll
    for (int c = 0; c < 1 << (D - 1); ++c) {
      const float weight = corner_weight<D>(face, 2 * c);
#pragma unroll
      for (int f = 0; f < F; ++f) value[c][f] += weight * grad[f];
    }
  }

  template <typename AddRow>
  __device__ __forceinline__ void flush(const Level& level, const AddRow& add_row) {
    if (!filled) return;
    filled = false;
    Cell<D> cell;
#pragma unroll
    for (int d = 0; d < D; ++d) {
      cell.axis[d].term[0] = term[d];
      cell.axis[d].term[1] = term[d] + level.multiplier[d];
    }
#pragma unroll
    for (int c = 0; c < 1 << (D - 1); ++c) {
      const uint32_t row =
          level.hashed ? corner_row<D, true>(cell, level, 2 * c) : corner_row<D, false>(cell, level, 2 * c);
      add_row(level.offset + row, value[c]);
    }
  }
};

// One reduction per 8 or 16 bytes from Hopper on.
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

#endif  // __CUDACC__

}  // namespace lightning_nerf::hash_grid
