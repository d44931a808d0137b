// One ray through one random pixel: the words behind the index, the pinhole camera, the pixel's colour. And what is behind it.
#pragma once
#include "random.cuh"

namespace lightning_nerf {

constexpr uint32_t kStreamRays = 0, kStreamBackground = 1;  // of lightning_nerf/ops/random.py

struct DrawRays {
  const uint8_t* images;    // [V, H, W, C]
  const float* c2w;         // [V, 3, 4]
  const float* intrinsics;  // [V, 4] fx, fy, cx, cy
  const float* times;       // [V] or null
  const int64_t* pixels;    // [P] or null
  const int64_t* key;       // [3]
  const int32_t* n_rays;    // [] or null
  int64_t size;             // P, or V * H * W
  int64_t height, width, channels;
  float near, far;

  float* origins;        // [R, 3]
  float* directions;     // [R, 3]
  float* nears;          // [R]
  float* fars;           // [R]
  float* ray_times;      // [R] or null
  float* rgb;            // [R, 3]
  float* alpha;          // [R] or null
  bool* mask;            // [R] or null
  int64_t* image_index;  // [R]
};

// Row `row` of stream "rays": the two numbers that random_uniform shows make a 48-bit fraction, exact in float64.
LN_HD int64_t draw_index(const int64_t* key, int64_t row, int64_t size) {
  const Philox random =
      philox(uint32_t(row), 0u, uint32_t(key[2]), kStreamRays, uint32_t(key[0]), uint32_t(key[1]));
  const uint64_t fraction = (uint64_t(random.word[0] >> 8) << 24) | (random.word[1] >> 8);
  return int64_t(double(fraction) * (1.0 / 281474976710656.0) * double(size));  // one rounding, in the last product
}

LN_HD void draw_ray(const DrawRays& d, int64_t ray) {
  const int64_t index = draw_index(d.key, ray, d.size);
  const int64_t flat = d.pixels ? d.pixels[index] : index;
  const int64_t row = flat / d.width;  // of all images' rows
  const int64_t image = row / d.height;
  const float x = float(flat - row * d.width), y = float(row - image * d.height);

  const float* lens = d.intrinsics + 4 * image;
  const float* pose = d.c2w + 12 * image;
  const float u = (x + 0.5f - lens[2]) / lens[0], v = (lens[3] - 0.5f - y) / lens[1];
  float direction[3], squared = 0.0f;
  for (int a = 0; a < 3; ++a) {
    direction[a] = pose[4 * a] * u + pose[4 * a + 1] * v - pose[4 * a + 2];
    squared += direction[a] * direction[a];
  }
  const float length = sqrtf(squared);
  for (int a = 0; a < 3; ++a) {
    d.origins[3 * ray + a] = pose[4 * a + 3];
    d.directions[3 * ray + a] = direction[a] / length;
  }

  const bool active = !d.n_rays || ray < *d.n_rays;
  d.nears[ray] = active ? d.near : 0.0f;
  d.fars[ray] = active ? d.far : 0.0f;
  if (d.mask) d.mask[ray] = active;
  if (d.ray_times) d.ray_times[ray] = d.times[image];
  d.image_index[ray] = image;

  const uint8_t* colour = d.images + flat * d.channels;
  for (int c = 0; c < 3; ++c) d.rgb[3 * ray + c] = float(colour[c]) / 255.0f;
  if (d.alpha) d.alpha[ray] = float(colour[3]) / 255.0f;
}

struct Background {
  const int64_t* key;  // [3]
  int64_t random_steps;
  float colour[3];
  float* out;  // [R, 3]
};

LN_HD void draw_background_of(const Background& b, int64_t ray) {
  float colour[3] = {b.colour[0], b.colour[1], b.colour[2]};
  if (b.key[2] < b.random_steps) random_uniform_row(b.key, kStreamBackground, ray, 3, colour);
  for (int c = 0; c < 3; ++c) b.out[3 * ray + c] = colour[c];
}

}  // namespace lightning_nerf
