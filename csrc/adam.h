// Arguments of the Adam ops, the same for both launchers.
#pragma once
#include "adam.cuh"
#include "stable.h"

#include <vector>

namespace lightning_nerf::adam {

struct Parameter {
  float* param;  // [n], as are the others
  float* grad;
  float* exp_avg;
  float* exp_avg_sq;
  float* ema;   // nullptr: no average
  void* half;   // fp16; nullptr: no copy
  float* step;  // []
  int64_t n;
};

struct Scalars {
  int32_t* control;         // [4]
  const float* lr;          // [], nullptr: the options' own
  const float* grad_scale;  // [], nullptr: 1
  const float* found_inf;   // [], nullptr: 0
};

inline float* float_data(const Tensor& t, int64_t n, const Tensor& like, const char* name) {
  check_float(t, name);
  STD_TORCH_CHECK(t.numel() == n, name, " has ", t.numel(), " elements, not ", n);
  STD_TORCH_CHECK(
      t.is_cuda() == like.is_cuda() && t.get_device_index() == like.get_device_index(), name,
      " must be on the device of control");
  return mutable_data<float>(t);
}

inline int32_t* control_data(const Tensor& control) {
  check_int(control, "control");
  STD_TORCH_CHECK(control.numel() == 4, "control must have four elements");
  return mutable_data<int32_t>(control);
}

inline void check_length(const char* name, size_t length, size_t wanted) {
  STD_TORCH_CHECK(length == wanted, name, " has ", length, " tensors, expected ", wanted);
}

inline std::vector<Parameter> begin_parameters(
    const std::vector<Tensor>& grads, const std::vector<Tensor>& steps, const Tensor& control) {
  check_length("steps", steps.size(), grads.size());
  std::vector<Parameter> out(grads.size());
  for (size_t i = 0; i < grads.size(); ++i) {
    out[i] = {};
    out[i].n = grads[i].numel();
    out[i].grad = float_data(grads[i], out[i].n, control, "grads");
    out[i].step = float_data(steps[i], 1, control, "steps");
  }
  return out;
}

// `emas` and `halves` may be empty lists; an entry of `halves` may be an empty tensor.
inline std::vector<Parameter> make_parameters(
    const std::vector<Tensor>& params, const std::vector<Tensor>& grads, const std::vector<Tensor>& exp_avgs,
    const std::vector<Tensor>& exp_avg_sqs, const std::vector<Tensor>& emas, const std::vector<Tensor>& halves,
    const std::vector<Tensor>& steps, const Tensor& control) {
  check_length("params", params.size(), grads.size());
  check_length("exp_avgs", exp_avgs.size(), grads.size());
  check_length("exp_avg_sqs", exp_avg_sqs.size(), grads.size());
  if (!emas.empty()) check_length("emas", emas.size(), grads.size());
  if (!halves.empty()) check_length("halves", halves.size(), grads.size());
  std::vector<Parameter> out = begin_parameters(grads, steps, control);
  for (size_t i = 0; i < out.size(); ++i) {
    Parameter& t = out[i];
    t.param = float_data(params[i], t.n, control, "params");
    t.exp_avg = float_data(exp_avgs[i], t.n, control, "exp_avgs");
    t.exp_avg_sq = float_data(exp_avg_sqs[i], t.n, control, "exp_avg_sqs");
    if (!emas.empty()) t.ema = float_data(emas[i], t.n, control, "emas");
    if (!halves.empty() && halves[i].numel() > 0) {
      check(halves[i], ScalarType::Half, "halves");
      STD_TORCH_CHECK(
          halves[i].numel() == t.n && halves[i].is_cuda() == control.is_cuda(),
          "halves must have the sizes and the device of params");
      t.half = halves[i].mutable_data_ptr();
    }
  }
  return out;
}

inline Scalars make_scalars(
    const Tensor& control, const std::optional<Tensor>& lr, const std::optional<Tensor>& grad_scale,
    const std::optional<Tensor>& found_inf) {
  const auto scalar = [&](const std::optional<Tensor>& t, const char* name) -> const float* {
    return t.has_value() ? float_data(*t, 1, control, name) : nullptr;
  };
  return {control_data(control), scalar(lr, "lr_tensor"), scalar(grad_scale, "grad_scale"), scalar(found_inf, "found_inf")};
}

inline Options make_options(
    double lr, double beta1, double beta2, double eps, double weight_decay, double ema_decay, double ema_share,
    int64_t ema_every, bool zero_grads, bool last) {
  STD_TORCH_CHECK(ema_every >= 1, "ema_every must be at least 1");
  STD_TORCH_CHECK(ema_share > 0 && ema_share <= 1, "ema_share must be in (0, 1]");
  return {
      float(lr),
      float(beta1),
      float(beta2),
      float(1 - beta1),
      float(1 - beta2),
      float(std::log(beta1)),
      float(std::log(beta2)),
      float(eps),
      float(weight_decay),
      float(std::log(ema_decay)),
      float(ema_share),
      int(ema_every),
      zero_grads,
      last};
}

// run counts the step and looks for gradients that are not finite; `like` says on which device.
template <void (*run)(const Tensor& like, const std::vector<Parameter>&, int32_t* control, bool check_grads)>
void adam_begin_(std::vector<Tensor> grads, std::vector<Tensor> steps, Tensor control, bool check_grads) {
  int32_t* state = control_data(control);
  run(control, begin_parameters(grads, steps, control), state, check_grads);
}

// run updates the parameters.
template <void (*run)(const Tensor& like, const std::vector<Parameter>&, const Scalars&, const Options&)>
void adam_(
    std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> exp_avgs, std::vector<Tensor> exp_avg_sqs,
    std::vector<Tensor> emas, std::vector<Tensor> halves, std::vector<Tensor> steps, Tensor control,
    std::optional<Tensor> lr_tensor, std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf, double lr,
    double beta1, double beta2, double eps, double weight_decay, double ema_decay, double ema_share, int64_t ema_every,
    bool zero_grads, bool last) {
  const auto parameters = make_parameters(params, grads, exp_avgs, exp_avg_sqs, emas, halves, steps, control);
  const Scalars scalars = make_scalars(control, lr_tensor, grad_scale, found_inf);
  const Options options =
      make_options(lr, beta1, beta2, eps, weight_decay, ema_decay, ema_share, ema_every, zero_grads, last);
  run(control, parameters, scalars, options);
}

}  // namespace lightning_nerf::adam
