#include "adam.h"

#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstring>

namespace lightning_nerf::adam {
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

void begin(const Tensor&, const std::vector<Parameter>& parameters, int32_t* state, bool check_grads) {
  const int32_t now = state[kEnded] + 1;
  state[kNow] = now;
  for (const Parameter& t : parameters) {
    *t.step += 1.0f;
    if (!check_grads) continue;
    parallel_for((t.n + kChunk - 1) / kChunk, 8, [&](int64_t chunk) {
      const int64_t begin = chunk * kChunk;
      if (non_finite(t.grad + begin, std::min(kChunk, t.n - begin)))
        __atomic_store_n(state + kBad, now, __ATOMIC_RELAXED);  // all threads that find one write the same value
    });
  }
}

void update_part(
    const Options& o, const Step& s, float inverse_scale, bool skip, const Parameter& t, int64_t begin, int64_t end) {
  const int64_t n = end - begin;
  float* __restrict__ param = t.param + begin;
  float* __restrict__ grad = t.grad + begin;
  if (!skip) {
    float* __restrict__ exp_avg = t.exp_avg + begin;
    float* __restrict__ exp_avg_sq = t.exp_avg_sq + begin;
    const Options options = o;  // copies: the compiler need not fear that a store changes them
    const Step step = s;
    for (int64_t i = 0; i < n; ++i)
      update_element(options, step, inverse_scale, grad[i], param[i], exp_avg[i], exp_avg_sq[i]);
    if (t.ema && s.ema_weight != 0.0f) {
      float* __restrict__ ema = t.ema + begin;
      for (int64_t i = 0; i < n; ++i) average_element(step, param[i], ema[i]);
    }
  }
  if (t.half) {
    Half* half = static_cast<Half*>(t.half) + begin;
    for (int64_t i = 0; i < n; ++i) half[i] = Half(param[i]);
  }
  if (o.zero_grads) std::fill(grad, grad + n, 0.0f);
}

void update(const Tensor&, const std::vector<Parameter>& parameters, const Scalars& scalars, const Options& o) {
  const float rate = scalars.lr ? *scalars.lr : o.lr;
  const float inverse_scale = scalars.grad_scale ? 1.0f / *scalars.grad_scale : 1.0f;
  int32_t* state = scalars.control;
  const bool skip = state[kBad] == state[kNow] || (scalars.found_inf && *scalars.found_inf != 0.0f);
  for (const Parameter& t : parameters) {
    const Step s = step_of(o, rate, *t.step);
    parallel_for((t.n + kChunk - 1) / kChunk, 2, [&](int64_t chunk) {
      update_part(o, s, inverse_scale, skip, t, chunk * kChunk, std::min(t.n, (chunk + 1) * kChunk));
    });
    if (skip) *t.step -= 1.0f;
  }
  if (!o.last) return;
  state[kEnded] = state[kNow];
  state[kSkipped] += skip;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def("adam_begin_(Tensor[] grads, Tensor(a!)[] steps, Tensor(b!) control, bool check_grads) -> ()");
  m.def(
      "adam_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
      "Tensor(e!)[] emas, Tensor(f!)[] halves, Tensor(g!)[] steps, Tensor(h!) control, Tensor? lr_tensor, "
      "Tensor? grad_scale, Tensor? found_inf, float lr, float beta1, float beta2, float eps, float weight_decay, "
      "float ema_decay, float ema_share, int ema_every, bool zero_grads, bool last) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CPU, m) {
  m.impl("adam_begin_", TORCH_BOX(&adam_begin_<begin>));
  m.impl("adam_", TORCH_BOX(&adam_<update>));
}

}  // namespace lightning_nerf::adam
