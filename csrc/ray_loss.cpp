#include "ray_loss.h"

#include <algorithm>
#include <vector>

namespace lightning_nerf {
namespace {

constexpr int64_t kChunk = 1024;  // rays summed together: fixed, so that the sum's bits are

struct Partial {
  double huber = 0.0, square = 0.0;
  int64_t count = 0;
};

RayLosses ray_loss(
    const Tensor& rgb, const Tensor& target, const std::optional<Tensor>& alpha, const std::optional<Tensor>& background,
    const Tensor& kept, const std::optional<Tensor>& mask, double delta) {
  const RayLoss r = ray_loss_arguments(rgb, target, alpha, background, kept, mask, delta);
  std::vector<Partial> partials(size_t((r.n_rays + kChunk - 1) / kChunk));
  parallel_for(int64_t(partials.size()), 4, [&](int64_t chunk) {
    Partial& sum = partials[size_t(chunk)];
    for (int64_t ray = chunk * kChunk; ray < std::min(r.n_rays, (chunk + 1) * kChunk); ++ray) {
      if (!r.counts(ray)) continue;
      ++sum.count;
      for (int c = 0; c < 3; ++c) {
        const float error = r.error(ray, c);
        sum.huber += huber(error, r.delta);
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
  Tensor loss = empty(rgb, {}, ScalarType::Float), mse = empty(rgb, {}, ScalarType::Float);
  Tensor n_rays = empty(rgb, {}, ScalarType::Long);
  *mutable_data<float>(loss) = float(sum.huber) * mean_share(sum.count);
  *mutable_data<float>(mse) = float(sum.square) * mean_share(sum.count);
  *mutable_data<int64_t>(n_rays) = sum.count;
  return {loss, mse, n_rays};
}

Tensor ray_loss_backward(
    const Tensor& grad_loss, const Tensor& rgb, const Tensor& target, const std::optional<Tensor>& alpha,
    const std::optional<Tensor>& background, const Tensor& kept, const std::optional<Tensor>& mask, const Tensor& n_rays,
    double delta) {
  const RayLoss r = ray_loss_arguments(rgb, target, alpha, background, kept, mask, delta);
  check_float(grad_loss, "grad_loss");
  check(n_rays, ScalarType::Long, "n_rays");
  Tensor grad = empty(rgb, {r.n_rays, 3}, ScalarType::Float);
  float* out = mutable_data<float>(grad);
  const float share = *data<float>(grad_loss) * mean_share(*data<int64_t>(n_rays));
  parallel_for(r.n_rays, 4096, [&](int64_t ray) {
    const bool counts = r.counts(ray);
    for (int c = 0; c < 3; ++c) out[3 * ray + c] = counts ? share * huber_slope(r.error(ray, c), r.delta) : 0.0f;
  });
  return grad;
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "ray_loss(Tensor rgb, Tensor target, Tensor? alpha, Tensor? background, Tensor kept, Tensor? mask, float delta) "
      "-> (Tensor loss, Tensor mse, Tensor n_rays)");
  m.def(
      "ray_loss_backward(Tensor grad_loss, Tensor rgb, Tensor target, Tensor? alpha, Tensor? background, Tensor kept, "
      "Tensor? mask, Tensor n_rays, float delta) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("ray_loss", TORCH_BOX(&lightning_nerf::ray_loss));
  m.impl("ray_loss_backward", TORCH_BOX(&lightning_nerf::ray_loss_backward));
}
