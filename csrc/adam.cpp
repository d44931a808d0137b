#include "adam.h"

#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstring>

namespace lightning_nerf {
namespace {

using torch::headeronly::Half;

constexpr int64_t kChunk = 16384;  // elements per parallel iteration

bool non_finite(const float* values, int64_t n) {
  uint32_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, 4);
    found |= (bits & 0x7F800000u) == 0x7F800000u;  // all ones in the exponent
  }
  return found != 0;
}

void adam_begin_(std::vector<Tensor> grads, std::vector<Tensor> steps, Tensor control, bool check_grads) {
  int32_t* state = adam_control(control);
  const int32_t now = state[kEnded] + 1;
  state[kNow] = now;
  for (const AdamTensor& t : adam_begin_tensors(grads, steps, control)) {
    *t.step += 1.0f;
    if (!check_grads) continue;
    parallel_for((t.n + kChunk - 1) / kChunk, 8, [&](int64_t chunk) {
      const int64_t begin = chunk * kChunk;
      if (non_finite(t.grad + begin, std::min(kChunk, t.n - begin)))
        __atomic_store_n(state + kBad, now, __ATOMIC_RELAXED);  // whoever meets one writes the same
    });
  }
}

void update(const AdamOptions& o, const AdamStep& s, float inverse_scale, bool skip, const AdamTensor& t, int64_t begin,
            int64_t end) {
  const int64_t n = end - begin;
  float* __restrict__ param = t.param + begin;
  float* __restrict__ grad = t.grad + begin;
  if (!skip) {
    float* __restrict__ exp_avg = t.exp_avg + begin;
    float* __restrict__ exp_avg_sq = t.exp_avg_sq + begin;
    const AdamOptions options = o;  // copies: the compiler need not fear that a store changes them
    const AdamStep step = s;
    for (int64_t i = 0; i < n; ++i)
      adam_element(options, step, inverse_scale, grad[i], param[i], exp_avg[i], exp_avg_sq[i]);
    if (t.ema && s.ema_weight != 0.0f) {
      float* __restrict__ ema = t.ema + begin;
      for (int64_t i = 0; i < n; ++i) ema_element(step, param[i], ema[i]);
    }
  }
  if (t.half) {
    Half* half = static_cast<Half*>(t.half) + begin;
    for (int64_t i = 0; i < n; ++i) half[i] = Half(param[i]);
  }
  if (o.zero_grads) std::fill(grad, grad + n, 0.0f);
}

void adam_(
    std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> exp_avgs, std::vector<Tensor> exp_avg_sqs,
    std::vector<Tensor> emas, std::vector<Tensor> halves, std::vector<Tensor> steps, Tensor control,
    std::optional<Tensor> lr_tensor, std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf, double lr,
    double beta1, double beta2, double eps, double weight_decay, double ema_decay, double ema_share, int64_t ema_every,
    bool zero_grads, bool last) {
  const auto tensors = adam_tensors(params, grads, exp_avgs, exp_avg_sqs, emas, halves, steps, control);
  const AdamScalars scalars = adam_scalars(control, lr_tensor, grad_scale, found_inf);
  const AdamOptions o =
      adam_options(lr, beta1, beta2, eps, weight_decay, ema_decay, ema_share, ema_every, zero_grads, last);
  const float rate = scalars.lr ? *scalars.lr : o.lr;
  const float inverse_scale = scalars.grad_scale ? 1.0f / *scalars.grad_scale : 1.0f;
  int32_t* state = scalars.control;
  const bool skip = state[kBad] == state[kNow] || (scalars.found_inf && *scalars.found_inf != 0.0f);
  for (const AdamTensor& t : tensors) {
    const AdamStep s = adam_step(o, rate, *t.step);
    parallel_for((t.n + kChunk - 1) / kChunk, 2, [&](int64_t chunk) {
      update(o, s, inverse_scale, skip, t, chunk * kChunk, std::min(t.n, (chunk + 1) * kChunk));
    });
    if (skip) *t.step -= 1.0f;
  }
  if (!last) return;
  state[kEnded] = state[kNow];
  state[kSkipped] += skip;
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("adam_begin_(Tensor[] grads, Tensor(a!)[] steps, Tensor(b!) control, bool check_grads) -> ()");
  m.def("adam_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
        "Tensor(e!)[] emas, Tensor(f!)[] halves, Tensor(g!)[] steps, Tensor(h!) control, Tensor? lr_tensor, "
        "Tensor? grad_scale, Tensor? found_inf, float lr, float beta1, float beta2, float eps, float weight_decay, "
        "float ema_decay, float ema_share, int ema_every, bool zero_grads, bool last) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("adam_begin_", TORCH_BOX(&lightning_nerf::adam_begin_));
  m.impl("adam_", TORCH_BOX(&lightning_nerf::adam_));
}
