// Multiresolution hash encoding (Mueller, Evans, Schied, Keller, "Instant Neural Graphics Primitives with a
// Multiresolution Hash Encoding", SIGGRAPH 2022): where a point lies in a level's grid, and which table rows it mixes.
#pragma once
#include <type_traits>

#include "host_device.cuh"

namespace lightning_nerf {

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

// x * scale + 0.5, rounded twice as the reference does: a fused result could fall into the neighbouring cell.
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

}  // namespace lightning_nerf
