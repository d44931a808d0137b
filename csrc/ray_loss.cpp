#include "ray_loss.h"

#include <algorithm>
#include <vector>

namespace lightning_nerf::ray_loss {
namespace {

constexpr int64_t kChunk = 1024;  // rays summed together: fixed, so that the sum's bits are
constexpr int64_t kGrain = 4096;  // rays

struct Partial {
  double huber = 0.0, square = 0.0;
  int64_t count = 0;
};

void forward(const Tensor&, const Arguments& a, const Losses& out) {
  std::vector<Partial> partials(size_t((a.n_rays + kChunk - 1) / kChunk));
  parallel_for(int64_t(partials.size()), 4, [&](int64_t chunk) {
    Partial& sum = partials[size_t(chunk)];
    for (int64_t ray = chunk * kChunk; ray < std::min(a.n_rays, (chunk + 1) * kChunk); ++ray) {
      if (!a.counts(ray)) continue;
      ++sum.count;
      for (int c = 0; c < 3; ++c) {
        const float error = a.error(ray, c);
        sum.huber += huber(error, a.delta);
        sum.square += error * error;
      }
    }
  });
  Partial sum;
  for (const Partial& partial : partials) {
    sum.huber += partial.huber;
    sum.square += partial.square;
    sum.count += partial.count;
  }
  *out.loss = float(sum.huber) * mean_share(sum.count);
  *out.mse = float(sum.square) * mean_share(sum.count);
  *out.n_rays = sum.count;
}

void backward(const Tensor&, const Arguments& a, const float* grad_loss, const int64_t* n_rays, float* grad) {
  const float share = *grad_loss * mean_share(*n_rays);
  parallel_for(a.n_rays, kGrain, [&](int64_t ray) {
    const bool counts = a.counts(ray);
    for (int c = 0; c < 3; ++c) grad[3 * ray + c] = counts ? share * huber_slope(a.error(ray, c), a.delta) : 0.0f;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "ray_loss(Tensor rgb, Tensor target, Tensor? alpha, Tensor? background, Tensor kept, Tensor? mask, float delta) "
      "-> (Tensor loss, Tensor mse, Tensor n_rays)");
  m.def(
      "ray_loss_backward(Tensor grad_loss, Tensor rgb, Tensor target, Tensor? alpha, Tensor? background, Tensor kept, "
      "Tensor? mask, Tensor n_rays, float delta) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("ray_loss", TORCH_BOX(&ray_loss<forward>));
  m.impl("ray_loss_backward", TORCH_BOX(&ray_loss_backward<backward>));
}

}  // namespace lightning_nerf::ray_loss
