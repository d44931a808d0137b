// The arguments of the Adam ops as both launchers want them.
#pragma once
#include "adam.cuh"
#include "stable.h"

#include <vector>

namespace lightning_nerf {

struct AdamTensor {
  float* param;  // [n], as are the others
  float* grad;
  float* exp_avg;
  float* exp_avg_sq;
  float* ema;   // nullptr: no average
  void* half;   // fp16; nullptr: no copy
  float* step;  // []
  int64_t n;
};

struct AdamScalars {
  int32_t* control;         // [4]
  const float* lr;          // [], nullptr: the options' own
  const float* grad_scale;  // [], nullptr: 1
  const float* found_inf;   // [], nullptr: 0
};

inline float* adam_data(const Tensor& t, int64_t n, const Tensor& like, const char* name) {
  check_float(t, name);
  STD_TORCH_CHECK(t.numel() == n, name, " has ", t.numel(), " elements, not ", n);
  STD_TORCH_CHECK(t.is_cuda() == like.is_cuda() && t.get_device_index() == like.get_device_index(),
                  name, " must be on the device of control");
  return mutable_data<float>(t);
}

inline int32_t* adam_control(const Tensor& control) {
  check_int(control, "control");
  STD_TORCH_CHECK(control.numel() == 4, "control must have four elements");
  return mutable_data<int32_t>(control);
}

inline void adam_lengths(const char* name, size_t length, size_t wanted) {
  STD_TORCH_CHECK(length == wanted, name, " has ", length, " tensors, expected ", wanted);
}

inline std::vector<AdamTensor> adam_begin_tensors(
    const std::vector<Tensor>& grads, const std::vector<Tensor>& steps, const Tensor& control) {
  adam_lengths("steps", steps.size(), grads.size());
  std::vector<AdamTensor> out(grads.size());
  for (size_t i = 0; i < grads.size(); ++i) {
    out[i] = {};
    out[i].n = grads[i].numel();
    out[i].grad = adam_data(grads[i], out[i].n, control, "grads");
    out[i].step = adam_data(steps[i], 1, control, "steps");
  }
  return out;
}

// `emas` and `halves` may be empty lists; an entry of `halves` may be an empty tensor.
inline std::vector<AdamTensor> adam_tensors(
    const std::vector<Tensor>& params, const std::vector<Tensor>& grads, const std::vector<Tensor>& exp_avgs,
    const std::vector<Tensor>& exp_avg_sqs, const std::vector<Tensor>& emas, const std::vector<Tensor>& halves,
    const std::vector<Tensor>& steps, const Tensor& control) {
  adam_lengths("params", params.size(), grads.size());
  adam_lengths("exp_avgs", exp_avgs.size(), grads.size());
  adam_lengths("exp_avg_sqs", exp_avg_sqs.size(), grads.size());
  if (!emas.empty()) adam_lengths("emas", emas.size(), grads.size());
  if (!halves.empty()) adam_lengths("halves", halves.size(), grads.size());
  std::vector<AdamTensor> out = adam_begin_tensors(grads, steps, control);
  for (size_t i = 0; i < out.size(); ++i) {
    AdamTensor& t = out[i];
    t.param = adam_data(params[i], t.n, control, "params");
    t.exp_avg = adam_data(exp_avgs[i], t.n, control, "exp_avgs");
    t.exp_avg_sq = adam_data(exp_avg_sqs[i], t.n, control, "exp_avg_sqs");
    if (!emas.empty()) t.ema = adam_data(emas[i], t.n, control, "emas");
    if (!halves.empty() && halves[i].numel() > 0) {
      check(halves[i], ScalarType::Half, "halves");
      STD_TORCH_CHECK(halves[i].numel() == t.n && halves[i].is_cuda() == control.is_cuda(),
                      "halves must have the sizes and the device of params");
      t.half = halves[i].mutable_data_ptr();
    }
  }
  return out;
}

inline AdamScalars adam_scalars(
    const Tensor& control, const std::optional<Tensor>& lr, const std::optional<Tensor>& grad_scale,
    const std::optional<Tensor>& found_inf) {
  const auto scalar = [&](const std::optional<Tensor>& t, const char* name) -> const float* {
    return t.has_value() ? adam_data(*t, 1, control, name) : nullptr;
  };
  return {adam_control(control), scalar(lr, "lr_tensor"), scalar(grad_scale, "grad_scale"),
          scalar(found_inf, "found_inf")};
}

inline AdamOptions adam_options(
    double lr, double beta1, double beta2, double eps, double weight_decay, double ema_decay,
    double ema_share, int64_t ema_every, bool zero_grads, bool last) {
  STD_TORCH_CHECK(ema_every >= 1, "ema_every must be at least 1");
  STD_TORCH_CHECK(ema_share > 0 && ema_share <= 1, "ema_share must be in (0, 1]");
  return {float(lr), float(beta1), float(beta2), float(1 - beta1), float(1 - beta2), float(std::log(beta1)),
          float(std::log(beta2)), float(eps), float(weight_decay), float(std::log(ema_decay)),
          float(ema_share), int(ema_every), zero_grads, last};
}

}  // namespace lightning_nerf
