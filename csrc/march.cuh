// One ray's walk through nested occupancy levels: a lattice of samples in t, looked up cell by cell.
//
// The cell of a sample is computed in float from its midpoint, and every step of that (multiply by d, add o, subtract the
// centre, scale, truncate) is monotone in the midpoint, rounding included. So if two samples of a ray fall in one cell, all
// between them do, exactly: a walk looks up two samples per cell it crosses, never one per sample, and yet gives what a
// lookup of each sample would. Where a cell ends is only guessed (by division, up to rounding) and then verified.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf {

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

struct MarchArguments {
  const float* origins;  // [R, 3]
  const float* directions;  // [R, 3]
  const float* near;  // [R]
  const float* far;  // [R]
  const float* jitter;  // [R] or null
  const bool* occupancy;  // [L, X, Y, Z]
  const float* aabb;  // [2, 3]
  int64_t n_rays;
  int levels, resolution[3];
  double step_size, cone_angle, log_growth;  // log_growth = log(1 + cone_angle)
};

// Sample k lies between at(k) and at(k + 1). Linear up to k = bend, where cone_angle * t reaches step_size, then geometric.
// k is a double: it counts exactly to 2^53, and beyond that still has as many values as t.
struct Lattice {
  double start, step, bend, bend_t, growth, log_growth;

  LN_HD Lattice(const MarchArguments& m, int64_t r)
      : start(double(m.near[r]) + (m.jitter ? double(m.jitter[r]) : 0.0) * m.step_size), step(m.step_size),
        bend(INFINITY), bend_t(INFINITY), growth(m.cone_angle), log_growth(m.log_growth) {
    if (growth <= 0.0) return;
    bend = larger(0.0, round_up((step / growth - start) / step));
    bend_t = start + bend * step;
  }
  LN_HD double at(double k) const {
    return k <= bend ? start + k * step : bend_t * exp((k - bend) * log_growth);
  }
  LN_HD double middle(double k) const {
    return k < bend ? start + (k + 0.5) * step : bend_t * exp((k - bend) * log_growth) * (1.0 + 0.5 * growth);
  }
  LN_HD static double after(double k) { return k + 1.0 > k ? k + 1.0 : k * (1.0 + 0x1p-52); }

  // The first k with middle(k) >= t, up to rounding.
  LN_HD double guess(double t) const {
    if (!(t > bend_t)) return larger(0.0, round_up((t - start) / step - 0.5));
    return bend + larger(0.0, round_up(log(t / (bend_t * (1.0 + 0.5 * growth))) / log_growth));
  }
  // The same exactly, where k < 2^50.
  LN_HD double first(double t) const {
    double k = guess(t);
    for (int i = 0; i < 2 && k > 0.0 && middle(k - 1.0) >= t; ++i) k -= 1.0;
    for (int i = 0; i < 2 && middle(k) < t; ++i) k = after(k);
    return k;
  }
};

// Level, cell and, per axis, on which side of the next finer level's box (below, within, above). Equal places of two samples
// mean the same place for all between them; the sides see to it that the finer box doesn't cut in between.
struct Place {
  int level;  // = number of levels: outside of all
  int cell[3];
  int side[3];

  LN_HD bool operator==(const Place& other) const {
    bool same = level == other.level;
    for (int a = 0; a < 3; ++a) same &= cell[a] == other.cell[a] && side[a] == other.side[a];
    return same;
  }
};

struct Ray {
  float origin[3], direction[3], inverse[3];  // inverse: for guesses only
  float far;
  bool active;

  LN_HD Ray(const MarchArguments& m, int64_t r)
      : far(fminf(m.far[r], kLargestFloat)), active(m.far[r] > m.near[r] && m.near[r] >= -kLargestFloat) {
    if (m.jitter) active &= fabsf(m.jitter[r]) <= 1.0f;
    for (int a = 0; a < 3; ++a) {
      origin[a] = m.origins[3 * r + a];
      direction[a] = m.directions[3 * r + a];
      inverse[a] = 1.0f / direction[a];
      active &= fabsf(origin[a]) <= kLargestFloat && fabsf(direction[a]) <= kLargestFloat;
    }
  }
};

struct Grid {
  const bool* occupancy;  // [L, X, Y, Z]
  int levels;
  int resolution[3];
  float centre[3], half[3], scale[3];  // u = (p - centre) * scale: level l is -2^l <= u <= 2^l
  bool valid;

  LN_HD explicit Grid(const MarchArguments& m) : occupancy(m.occupancy), levels(m.levels), valid(true) {
    for (int a = 0; a < 3; ++a) {
      resolution[a] = m.resolution[a];
      const float low = m.aabb[a], high = m.aabb[3 + a];
      centre[a] = 0.5f * low + 0.5f * high;
      half[a] = 0.5f * high - 0.5f * low;
      scale[a] = 1.0f / half[a];
      valid &= fabsf(centre[a]) <= kLargestFloat && scale[a] > 0.0f && scale[a] <= kLargestFloat;
    }
  }

  LN_HD Place locate(const Ray& ray, double middle) const {
    const float t = float(middle);
    float v[3];
    for (int a = 0; a < 3; ++a) v[a] = (ray.origin[a] + t * ray.direction[a] - centre[a]) * scale[a];
    Place place;
    place.level = 0;
    while (place.level < levels && !(fabsf(v[0]) <= 1.0f && fabsf(v[1]) <= 1.0f && fabsf(v[2]) <= 1.0f)) {
      ++place.level;
      for (int a = 0; a < 3; ++a) v[a] *= 0.5f;
    }
    for (int a = 0; a < 3; ++a) {
      place.side[a] = place.level == 0 ? 0 : int(v[a] > 0.5f) - int(v[a] < -0.5f);
      const int cell = place.level == levels ? 0 : int((v[a] + 1.0f) * (0.5f * float(resolution[a])));
      place.cell[a] = cell < resolution[a] ? cell : resolution[a] - 1;
    }
    return place;
  }

  LN_HD bool occupied(const Place& p) const {
    if (p.level == levels) return false;
    const int64_t row = (int64_t(p.level) * resolution[0] + p.cell[0]) * resolution[1] + p.cell[1];
    return occupancy[row * resolution[2] + p.cell[2]];
  }

  // About where the ray leaves this place; inf where it never does.
  LN_HD float exit(const Ray& ray, const Place& p) const {
    const float size = float(1 << p.level);
    float t = INFINITY;
    for (int a = 0; a < 3; ++a) {
      const bool forward = ray.direction[a] > 0.0f;
      float v = float(p.cell[a] + int(forward)) * (2.0f / float(resolution[a])) - 1.0f;
      bool never = ray.direction[a] == 0.0f;
      if (p.level == levels) {
        v = p.side[a] == 0 ? (forward ? 0.5f : -0.5f) : 0.5f * float(p.side[a]);
        never |= p.side[a] == (forward ? 1 : -1);
      }
      const float t_axis = (v * size * half[a] + centre[a] - ray.origin[a]) * ray.inverse[a];
      if (!never && t_axis < t) t = t_axis;
    }
    return t;
  }
};

// Calls emit(k, n) for each stretch of n consecutive samples from k on in an occupied cell, in order, until it says false.
template <typename Emit>
LN_HD void march(const Grid& grid, const Ray& ray, const Lattice& lattice, Emit& emit) {
  if (!ray.active || !grid.valid) return;
  const double end = lattice.first(ray.far);
  double k = 0.0, stride = 1.0;
  if (!(k < end)) return;
  Place place = grid.locate(ray, lattice.middle(k));
  for (;;) {
    const bool occupied = grid.occupied(place);
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
  float* t_ends;  // [N]
  LN_HD bool operator()(double k, double n) {
    float t = float(lattice.at(k));
    for (double j = 1.0; j <= n && i < end; j += 1.0, ++i) {
      t_starts[i] = t;
      t = float(lattice.at(k + j));
      t_ends[i] = t;
    }
    return i < end;
  }
};

}  // namespace lightning_nerf
