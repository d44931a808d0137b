// One ray's walk through nested occupancy levels: a lattice of samples in t, looked up cell by cell.
//
// The cell of a sample is computed in float from its midpoint, and every step of that (multiply by d, add o, subtract the
// center, scale, truncate) is monotone in the midpoint, rounding included. So if two samples of a ray fall in one cell, all
// between them do, exactly: a walk looks up two samples per cell it crosses, never one per sample, and yet gives what a
// lookup of each sample would. Where a cell ends is only guessed (by division, up to rounding) and then verified.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::march {

// std::fmax and ceil are calls on plain x86-64; NaN in b gives a.
LN_HD double larger(double a, double b) { return b > a ? b : a; }
LN_HD double smaller(double a, double b) { return b < a ? b : a; }
LN_HD double round_up(double x) {
#ifndef __CUDA_ARCH__
  if (x > -1e18 && x < 1e18) {
    const double truncated = double(int64_t(x));
    return truncated < x ? truncated + 1.0 : truncated;
  }
#endif
  return ceil(x);
}

constexpr float kLargestFloat = 3.402823466e38f;
constexpr double kSaturated = 2147483647.0;  // a count of INT32_MAX stands for all larger ones

struct Arguments {
  const float* origins;      // [R, 3]
  const float* directions;   // [R, 3]
  const float* near;         // [R]
  const float* far;          // [R]
  const float* jitter;       // [R] or null
  const uint8_t* occupancy;  // [n_bins, L, X, Y, Z], 2^packing cells to a byte
  const int32_t* bins;       // [R] or null: 0
  const float* aabb;         // [2, 3]
  int64_t n_rays, cells_of_bin;
  int packing;  // 0 or 3
  int n_bins;
  int levels, resolution[3];
  float half_resolution[3], cell_size[3];    // in units of half a level's box: cells per unit, and units per cell
  double step_size, cone_angle, log_growth;  // log_growth = log(1 + cone_angle)
  double per_step, per_log_growth;           // reciprocals
};

// The ray's bin, or the nearest that there is.
LN_HD int bin_of(const Arguments& m, int64_t r) {
  const int bin = m.bins ? m.bins[r] : 0;
  return bin < 0 ? 0 : bin < m.n_bins ? bin : m.n_bins - 1;
}

// Sample k lies between at(k) and at(k + 1). Linear up to k = bend, where cone_angle * t reaches step_size, then geometric.
// k is a double: it counts exactly to 2^53, and beyond that still has as many values as t.
template <bool kLinear>  // it is known that cone_angle <= 0
struct LatticeOf {
  const Arguments& m;
  double start, bend, bend_t;

  LN_HD LatticeOf(const Arguments& m, int64_t r)
      : m(m), start(double(m.near[r]) + (m.jitter ? double(m.jitter[r]) : 0.0) * m.step_size), bend(INFINITY),
        bend_t(INFINITY) {
    if (kLinear || m.cone_angle <= 0.0) return;
    const double least = m.step_size / m.cone_angle;
    bend = larger(0.0, round_up((least - start) / m.step_size));
    bend_t = larger(least, start + bend * m.step_size);  // rounding must not make it 0 or less
  }
  LN_HD LatticeOf(const Arguments& m, double start, double bend, double bend_t)
      : m(m), start(start), bend(bend), bend_t(bend_t) {}
  LN_HD double at(double k) const { return kLinear || k <= bend ? start + k * m.step_size : grown(k); }
  LN_HD float edge(double k) const { return float(smaller(at(k), double(kLargestFloat))); }
  LN_HD double middle(double k) const {
    return kLinear || k < bend ? start + (k + 0.5) * m.step_size : grown(k) * (1.0 + 0.5 * m.cone_angle);
  }
  LN_HD double grown(double k) const { return bend_t * exp((k - bend) * m.log_growth); }
  LN_HD static double after(double k) { return k + 1.0 > k ? k + 1.0 : k * (1.0 + 0x1p-52); }

  // The first k with middle(k) >= t, up to rounding.
  LN_HD double guess(double t) const {
    if (kLinear || !(t > bend_t)) return larger(0.0, round_up((t - start) * m.per_step - 0.5));
    return bend + larger(0.0, round_up(log(t / (bend_t * (1.0 + 0.5 * m.cone_angle))) * m.per_log_growth));
  }
  // The same exactly, where k < 2^50.
  LN_HD double first(double t) const {
    double k = guess(t);
    for (int i = 0; i < 2 && k > 0.0 && middle(k - 1.0) >= t; ++i) k -= 1.0;
    for (int i = 0; i < 2 && middle(k) < t; ++i) k = after(k);
    return k;
  }
};
using Lattice = LatticeOf<false>;

// Level, cell and, per axis, on which side of the next finer level's box (below, within, above). Equal places of two samples
// mean the same place for all between them; the sides see to it that the finer box doesn't cut in between. In one word,
// because places are mostly compared: 4 bits of level and, per axis, 2 of side and 18 of cell.
constexpr int kMaxResolution = 1 << 18;

struct Place {
  uint64_t key;

  LN_HD int level() const { return int(key & 15); }  // = number of levels: outside of all
  LN_HD int side(int axis) const { return int(key >> (4 + 20 * axis) & 3) - 1; }
  LN_HD int cell(int axis) const { return int(key >> (6 + 20 * axis)) & (kMaxResolution - 1); }
  LN_HD bool operator==(const Place& other) const { return key == other.key; }
};

struct Ray {
  float origin[3], direction[3], inverse[3];  // inverse: for guesses only
  float far;
  bool active;
  int64_t first_cell;  // of its bin

  LN_HD Ray(const Arguments& m, int64_t r)
      : far(fminf(m.far[r], kLargestFloat)), active(m.far[r] > m.near[r] && m.near[r] >= -kLargestFloat),
        first_cell(bin_of(m, r) * m.cells_of_bin) {
    if (m.jitter) active &= fabsf(m.jitter[r]) <= kLargestFloat;
    for (int a = 0; a < 3; ++a) {
      origin[a] = m.origins[3 * r + a];
      direction[a] = m.directions[3 * r + a];
      inverse[a] = 1.0f / direction[a];
      active &= fabsf(origin[a]) <= kLargestFloat && fabsf(direction[a]) <= kLargestFloat;
    }
  }
};

struct Grid {
  const Arguments& m;
  float center[3], half[3], scale[3];  // u = (p - center) * scale: level l is -2^l <= u <= 2^l
  bool valid;

  LN_HD explicit Grid(const Arguments& m) : m(m), valid(true) {
    for (int a = 0; a < 3; ++a) {
      const float low = m.aabb[a], high = m.aabb[3 + a];
      center[a] = 0.5f * low + 0.5f * high;
      half[a] = 0.5f * high - 0.5f * low;
      scale[a] = 1.0f / half[a];
      valid &= fabsf(center[a]) <= kLargestFloat && scale[a] > 0.0f && scale[a] <= kLargestFloat;
    }
  }

  LN_HD float unit(float origin, float direction, float t, int a) const {
    return (origin + t * direction - center[a]) * scale[a];
  }

  LN_HD Place locate(const float* origin, const float* direction, double middle) const {
    const float t = float(middle);
    float v[3];
    for (int a = 0; a < 3; ++a) v[a] = unit(origin[a], direction[a], t, a);
    int level = 0;
    while (level < m.levels && !(fabsf(v[0]) <= 1.0f && fabsf(v[1]) <= 1.0f && fabsf(v[2]) <= 1.0f)) {
      ++level;
      for (int a = 0; a < 3; ++a) v[a] *= 0.5f;
    }
    uint64_t key = level;
    for (int a = 0; a < 3; ++a) {
      const int side = level == 0 ? 1 : 1 + int(v[a] > 0.5f) - int(v[a] < -0.5f);
      const int in_grid = level == m.levels ? 0 : int((v[a] + 1.0f) * m.half_resolution[a]);
      const int cell = in_grid < m.resolution[a] ? in_grid : m.resolution[a] - 1;
      key |= uint64_t(4 * cell + side) << (4 + 20 * a);
    }
    return {key};
  }

  LN_HD Place locate(const Ray& ray, double middle) const { return locate(ray.origin, ray.direction, middle); }

  LN_HD bool occupied(const Ray& ray, const Place& p) const {
    if (p.level() == m.levels) return false;
    const int64_t row = (int64_t(p.level()) * m.resolution[0] + p.cell(0)) * m.resolution[1] + p.cell(1);
    const int64_t i = ray.first_cell + row * m.resolution[2] + p.cell(2);
    return m.occupancy[i >> m.packing] >> (i & ((1 << m.packing) - 1)) & 1;
  }

  // About where the ray leaves this place; inf where it never does.
  LN_HD float exit(const Ray& ray, const Place& p) const {
    const float size = float(1 << p.level());
    float t = INFINITY;
    for (int a = 0; a < 3; ++a) {
      const bool forward = ray.direction[a] > 0.0f;
      float v = float(p.cell(a) + int(forward)) * m.cell_size[a] - 1.0f;
      bool never = ray.direction[a] == 0.0f;
      if (p.level() == m.levels) {
        v = p.side(a) == 0 ? (forward ? 0.5f : -0.5f) : 0.5f * float(p.side(a));
        never |= p.side(a) == (forward ? 1 : -1);
      }
      const float t_axis = (v * size * half[a] + center[a] - ray.origin[a]) * ray.inverse[a];
      if (!never && t_axis < t) t = t_axis;
    }
    return t;
  }
};

// Calls emit(k, n) for each stretch of n consecutive samples from k on in an occupied cell, in order, until it says false.
template <typename Emit>
LN_HD void walk(const Grid& grid, const Ray& ray, const Lattice& lattice, Emit& emit) {
  if (!ray.active || !grid.valid) return;
  const double end = lattice.first(ray.far);
  double k = 0.0, stride = 1.0;
  if (!(k < end)) return;
  Place place = grid.locate(ray, lattice.middle(k));
  for (;;) {
    const bool occupied = grid.occupied(ray, place);
    // The last sample that may still be in this place: by geometry, or, where that has failed to get us out, by doubling.
    double last = k, next = lattice.after(k), next_middle = lattice.middle(next);
    const double exit = grid.exit(ray, place);
    if (exit > next_middle || stride > 1.0) {
      last = larger(k, smaller(larger(lattice.guess(exit) - 1.0, k + stride - 1.0), end - 1.0));
      if (last > k && !(grid.locate(ray, lattice.middle(last)) == place)) {
        for (double low = k, high = last;;) {  // place holds at low and not at high
          last = low;
          const double half = floor(low + 0.5 * (high - low));
          if (!(low < half && half < high)) break;
          (grid.locate(ray, lattice.middle(half)) == place ? low : high) = half;
        }
      }
      next = lattice.after(last);
      next_middle = lattice.middle(next);
    }
    next = smaller(next, end);
    if (occupied && !emit(k, next - k)) return;
    if (!(next < end)) return;
    k = next;
    const Place following = grid.locate(ray, next_middle);
    stride = following == place ? 2.0 * stride : 1.0;
    place = following;
  }
}

struct CountSamples {
  double count = 0.0;
  LN_HD bool operator()(double, double n) {
    count += n;
    return count < kSaturated;
  }
  LN_HD int32_t result() const { return int32_t(smaller(count, kSaturated)); }
};

// Writes entries begin to end; the march must find as many samples, else the rest stays as it was.
struct WriteSamples {
  const Lattice& lattice;
  int64_t i, end;
  float* t_starts;  // [N]
  float* t_ends;    // [N]
  LN_HD bool operator()(double k, double n) {
    float t = lattice.edge(k);
    for (double j = 1.0; j <= n && i < end; j += 1.0, ++i) {
      t_starts[i] = t;
      t = lattice.edge(k + j);
      t_ends[i] = t;
    }
    return i < end;
  }
};

}  // namespace lightning_nerf::march
