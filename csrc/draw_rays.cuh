// One ray through one random pixel: the words behind the index, the camera, the pixel's color. And what is behind it.
#pragma once
#include "lens_rays.cuh"
#include "random.cuh"

namespace lightning_nerf::draw_rays {

constexpr uint32_t kStreamRays = 0, kStreamBackground = 1;  // of lightning_nerf/ops/random.py

struct Pixels {
  const uint8_t* colors;    // [P, C]
  const int64_t* offsets;   // [V + 1]
  const int64_t* drawable;  // [M] or null
  const float* c2w;         // [V, 3, 4]
  const float* intrinsics;  // [V, 4] fx, fy, cx, cy
  const int64_t* size;      // [V, 2] width, height
  const float* bounds;      // [V, 2] near, far
  const float* times;       // [V] or null
  const int64_t* model;     // [V] or null: all are pinholes
  const float* lens;        // [V, 8] or null
  int64_t n_views, n_channels;
  int64_t n_drawable;  // M, or P
};

struct Draw {
  const int64_t* key;     // [3]
  const int32_t* n_rays;  // [] or null
};

struct Drawn {
  float* origins;     // [R, 3]
  float* directions;  // [R, 3]
  float* near;        // [R]
  float* far;         // [R]
  float* times;       // [R] or null
  float* footprint;   // [R]
  float* rgb;         // [R, 3]
  float* alpha;       // [R] or null
  bool* mask;         // [R] or null
  int64_t* camera;    // [R]
};

// Row `row` of stream "rays": the two numbers that random_uniform shows make a 48-bit fraction, exact in float64.
LN_HD int64_t draw_index(const int64_t* key, int64_t row, int64_t size) {
  const Philox random = philox(uint32_t(row), 0u, uint32_t(key[2]), kStreamRays, uint32_t(key[0]), uint32_t(key[1]));
  const uint64_t fraction = (uint64_t(random.word[0] >> 8) << 24) | (random.word[1] >> 8);
  return int64_t(double(fraction) * (1.0 / 281474976710656.0) * double(size));  // one rounding, in the last product
}

// The last view whose pixels begin at or before `pixel`. A dozen loads that all rays share, hence from the cache.
LN_HD int64_t view_of(const int64_t* offsets, int64_t n_views, int64_t pixel) {
  int64_t low = 0, high = n_views;  // offsets[low] <= pixel < offsets[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (offsets[middle] <= pixel) low = middle;
    else high = middle;
  }
  return low;
}

// Direction and footprint of a pinhole's ray.
LN_HD float pinhole_ray(const float* pose, const float* intrinsics, float x, float y, float* out) {
  const float u = (x + 0.5f - intrinsics[2]) / intrinsics[0], v = (intrinsics[3] - 0.5f - y) / intrinsics[1];
  float direction[3], squared = 0.0f;
  for (int a = 0; a < 3; ++a) {
    direction[a] = pose[4 * a] * u + pose[4 * a + 1] * v - pose[4 * a + 2];
    squared += direction[a] * direction[a];
  }
  const float length = sqrtf(squared);
  for (int a = 0; a < 3; ++a) out[a] = direction[a] / length;
  return 1.0f / sqrtf(fabsf(intrinsics[0] * intrinsics[1] * (1.0f + u * u + v * v)));
}

// Pictures may lie in the host's memory, where each read crosses the bus: one word where there are four channels, and all
// bytes before the first store, which could alias them.
LN_HD void read_color(const uint8_t* from, int64_t n_channels, uint8_t* color) {
#ifdef __CUDA_ARCH__
  if (n_channels == 4 && reinterpret_cast<uintptr_t>(from) % 4 == 0) {
    const uchar4 all = *reinterpret_cast<const uchar4*>(from);
    color[0] = all.x, color[1] = all.y, color[2] = all.z, color[3] = all.w;
    return;
  }
#endif
  for (int c = 0; c < 4; ++c)
    if (c < n_channels) color[c] = from[c];
}

// An inactive ray is black: its color is not read.
template <bool has_lenses>
LN_HD void draw_ray(const Pixels& p, const Draw& draw, const Drawn& out, int64_t ray) {
  const int64_t index = draw_index(draw.key, ray, p.n_drawable);
  const int64_t pixel = p.drawable ? p.drawable[index] : index;
  const int64_t view = view_of(p.offsets, p.n_views, pixel);
  const int64_t inside = pixel - p.offsets[view], width = p.size[2 * view], row = inside / width;
  const float x = float(inside - row * width), y = float(row);

  const float* intrinsics = p.intrinsics + 4 * view;
  const float* pose = p.c2w + 12 * view;
  for (int a = 0; a < 3; ++a) out.origins[3 * ray + a] = pose[4 * a + 3];
  float* direction = out.directions + 3 * ray;
  if constexpr (has_lenses) {
    const lens_rays::Lens lens = lens_rays::lens_of(p.model[view], p.lens + 8 * view);
    const lens_rays::Place place = lens_rays::place_of(intrinsics, x, y, lens);
    out.footprint[ray] = lens_rays::world_ray(pose, intrinsics, place, lens, direction);
  } else {
    out.footprint[ray] = pinhole_ray(pose, intrinsics, x, y, direction);
  }

  const bool active = !draw.n_rays || ray < *draw.n_rays;
  out.near[ray] = active ? p.bounds[2 * view] : 0.0f;
  out.far[ray] = active ? p.bounds[2 * view + 1] : 0.0f;
  if (out.mask) out.mask[ray] = active;
  if (out.times) out.times[ray] = p.times[view];
  out.camera[ray] = view;

  uint8_t color[4] = {0, 0, 0, 0};
  if (active) read_color(p.colors + pixel * p.n_channels, p.n_channels, color);
  for (int c = 0; c < 3; ++c) out.rgb[3 * ray + c] = float(color[c]) / 255.0f;
  if (out.alpha) out.alpha[ray] = float(color[3]) / 255.0f;
}

struct Background {
  const int64_t* key;  // [3]
  int64_t random_steps;
  float color[3];
  float* out;  // [R, 3]
};

LN_HD void draw_background_of(const Background& b, int64_t ray) {
  float color[3] = {b.color[0], b.color[1], b.color[2]};
  if (b.key[2] < b.random_steps) random_uniform_row(b.key, kStreamBackground, ray, 3, color);
  for (int c = 0; c < 3; ++c) b.out[3 * ray + c] = color[c];
}

}  // namespace lightning_nerf::draw_rays
