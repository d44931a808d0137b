// From a pixel to its ray through a lens; lightning_nerf/ops/lenses.py states the models and the sources.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::lens_rays {

enum Model : int64_t { kPinhole, kOpenCV, kFisheye, kEquirectangular };  // places in cameras.LENS_MODELS

constexpr int kRadialSteps = 16;  // that of lenses.py
constexpr double kPi = 3.14159265358979323846, kFlat = 1e-6, kSmall = 1e-7, kTolerance = 1e-5;

struct Lens {
  int64_t model;
  float n[4], d[3], p1, p2;  // (1 + n0 s + ... + n3 s^4) / (1 + d0 s + d1 s^2 + d2 s^3), and the tangential part
};

LN_HD Lens lens_of(int64_t model, const float* k) {
  if (model == kOpenCV) return {model, {k[0], k[1], k[4], 0.0f}, {k[5], k[6], k[7]}, k[2], k[3]};
  if (model == kFisheye) return {model, {k[0], k[1], k[2], k[3]}, {0.0f, 0.0f, 0.0f}, 0.0f, 0.0f};
  return {model, {0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f}, 0.0f, 0.0f};
}

template <typename T>
LN_HD T magnitude(T x) {
  return x < 0 ? -x : x;
}

template <typename T>
struct Radial {
  T excess, slope, pole;  // of the radial factor over 1, its derivative by s, and the denominator
};

template <typename T>
LN_HD Radial<T> radial(T s, const Lens& l) {
  const T n1 = l.n[0], n2 = l.n[1], n3 = l.n[2], n4 = l.n[3], d1 = l.d[0], d2 = l.d[1], d3 = l.d[2];
  const T n = s * (n1 + s * (n2 + s * (n3 + s * n4))), d = s * (d1 + s * (d2 + s * d3));
  const T dn = n1 + s * (2 * n2 + s * (3 * n3 + s * (4 * n4))), dd = d1 + s * (2 * d2 + s * (3 * d3));
  const T pole = 1 + d, excess = (n - d) / pole;
  return {excess, (dn - (1 + excess) * dd) / pole, pole};
}

template <typename T>
struct Shift {
  T u, v;        // distorted minus ideal place
  T aa, ab, bb;  // the symmetric derivative of the distorted place
  T determinant;
};

template <typename T>
LN_HD Shift<T> shift_at(T a, T b, const Lens& l) {
  const T s = a * a + b * b, ab = a * b, p1 = l.p1, p2 = l.p2;
  const Radial<T> r = radial(s, l);
  Shift<T> d;
  d.u = a * r.excess + (2 * p1 * ab + p2 * (s + 2 * a * a));
  d.v = b * r.excess + (p1 * (s + 2 * b * b) + 2 * p2 * ab);
  d.ab = 2 * ab * r.slope + 2 * (p1 * a + p2 * b);
  d.aa = 1 + r.excess + 2 * a * a * r.slope + (2 * p1 * b + 6 * p2 * a);
  d.bb = 1 + r.excess + 2 * b * b * r.slope + (6 * p1 * b + 2 * p2 * a);
  d.determinant = d.aa * d.bb - d.ab * d.ab;
  return d;
}

// The least radius whose distorted one is `target`: Newton's steps, halving where one leaves what is known. `bend`: what the
// tangential part adds to the radius, per square of it, in the pixel's direction.
LN_HD float radius_of(float target, float bend, const Lens& l) {
  float r = target, low = 0.0f, high = INFINITY;
  for (int i = 0; i < kRadialSteps; ++i) {
    const Radial<float> f = radial(r * r, l);
    const float slope = 1 + f.excess + 2 * (r * r) * f.slope + 2 * bend * r;
    const float miss = (r - target) + r * (f.excess + bend * r);
    const bool rises = slope > 0 && f.pole > 0;
    if (miss > 0 || !rises) high = r;
    else low = r;
    const float step = r - miss / slope;
    if (step == r && rises) break;  // every further step would stay there
    r = rises && step >= low && step <= high ? step : high < INFINITY ? (low + high) / 2 : 2 * r;
  }
  return r;
}

// One step for both axes; none where the derivative is singular, or where it would go far.
template <typename T>
LN_HD void newton(T& a, T& b, T u, T v, const Lens& l) {
  const Shift<T> d = shift_at(a, b, l);
  const T miss_u = (a - u) + d.u, miss_v = (b - v) + d.v;
  if (!(d.determinant > T(kFlat))) return;
  const T step_a = (d.bb * miss_u - d.ab * miss_v) / d.determinant,
          step_b = (d.aa * miss_v - d.ab * miss_u) / d.determinant;
  if (!(magnitude(step_a) + magnitude(step_b) <= 1 + magnitude(a) + magnitude(b))) return;
  a -= step_a;
  b -= step_b;
}

struct Place {
  double u, v, a, b;  // offset of the pixel in focal lengths, and the ideal place that the lens distorts into it
};

LN_HD Place place_of(const float* intrinsics, float x, float y, const Lens& l) {
  Place p;
  p.u = (double(x) + 0.5 - intrinsics[2]) / intrinsics[0];
  p.v = (double(y) + 0.5 - intrinsics[3]) / intrinsics[1];
  p.a = p.u;
  p.b = p.v;
  if (l.model != kOpenCV && l.model != kFisheye) return p;
  const float u = float(p.u), v = float(p.v), target = sqrtf(u * u + v * v);
  const float bend = target > 0 ? 3 * (l.p1 * v + l.p2 * u) / target : 0.0f;
  const float factor = target > 0 ? radius_of(target, bend, l) / target : 1.0f;
  float a = u * factor, b = v * factor;
  newton(a, b, u, v, l);
  p.a = a;
  p.b = b;
  for (int i = 0; i < 2; ++i) newton(p.a, p.b, p.u, p.v, l);
  return p;
}

struct View {
  double direction[3];  // right, up, backwards; of any length
  double area;          // at distance 1, of a unit of ideal places
};

LN_HD View view_of(const Place& p, const Lens& l) {
  const double a = p.a, b = p.b, s = a * a + b * b;
  if (l.model == kFisheye) {
    const double theta = sqrt(s);
    const double ratio = s < kSmall ? 1 - s / 6 : sin(theta) / theta;
    return {{ratio * a, -ratio * b, -(s < kSmall ? 1 - s / 2 : cos(theta))}, ratio};
  }
  if (l.model == kEquirectangular) return {{cos(b) * sin(a), -sin(b), -cos(b) * cos(a)}, cos(b)};
  return {{a, -b, -1.0}, 1 / (1 + s)};
}

// Unit direction in the world, and the footprint, of the pixel's ray.
LN_HD float world_ray(const float* pose, const float* intrinsics, const Place& p, const Lens& l, float* direction) {
  const View view = view_of(p, l);
  double world[3], squared = 0.0;
  for (int i = 0; i < 3; ++i) {
    world[i] = pose[4 * i] * view.direction[0] + pose[4 * i + 1] * view.direction[1] + pose[4 * i + 2] * view.direction[2];
    squared += world[i] * world[i];
  }
  const double length = sqrt(squared);
  for (int i = 0; i < 3; ++i) direction[i] = float(world[i] / length);
  const double magnified = double(intrinsics[0] * intrinsics[1]) * shift_at(p.a, p.b, l).determinant;
  return float(sqrt(fabs(view.area / magnified)));
}

// Whether the lens sees anything there; `limit`: the radius up to which its distortion rises.
LN_HD bool is_valid(const float* intrinsics, const Place& p, const Lens& l, float limit) {
  if (l.model == kEquirectangular) return fabs(p.a) <= kPi && fabs(p.b) <= kPi / 2;
  const Shift<double> d = shift_at(p.a, p.b, l);
  const double focal = fmax(fabs(double(intrinsics[0])), fabs(double(intrinsics[1])));
  const double miss = fmax(fabs((p.a + d.u) - p.u), fabs((p.b + d.v) - p.v)) * focal;
  return miss <= kTolerance && d.determinant > 0 && p.a * p.a + p.b * p.b <= double(limit) * double(limit);
}

// Cameras of each ray, or one for all: then the stride is 0.
struct Rays {
  const float* c2w;         // [R or 1, 3, 4]
  const float* intrinsics;  // [R or 1, 4]
  const int64_t* model;     // [R or 1]
  const float* lens;        // [R or 1, 8]
  const float* limit;       // [R or 1]
  const float *x, *y;       // [R]
  int64_t pose_stride, intrinsics_stride, model_stride, lens_stride, limit_stride;
};

struct Out {
  float* directions;  // [R, 3]
  float* footprint;   // [R]
  bool* valid;        // [R]
};

LN_HD void lens_ray(const Rays& r, const Out& out, int64_t ray) {
  const float* intrinsics = r.intrinsics + ray * r.intrinsics_stride;
  const Lens lens = lens_of(r.model[ray * r.model_stride], r.lens + ray * r.lens_stride);
  Place place = place_of(intrinsics, r.x[ray], r.y[ray], lens);
  const bool valid = is_valid(intrinsics, place, lens, r.limit[ray * r.limit_stride]);
  if (!valid) place.a = place.b = 0.0;
  out.valid[ray] = valid;
  out.footprint[ray] = world_ray(r.c2w + ray * r.pose_stride, intrinsics, place, lens, out.directions + 3 * ray);
}

}  // namespace lightning_nerf::lens_rays
