// Adam (Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1) with L2 weight decay, and a
// running average of the weights. One element and one parameter at a time, for host and device.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::adam {

// What an optimizer keeps on the device from step to step, int32 [4]. In adam_begin_ only `now` and `bad` are written and
// only `ended` is read, in adam_ the other way round: no block can meet a value that another has just changed.
enum Control : int {
  kEnded = 0,    // number of the last step that ended
  kNow = 1,      // number of the step under way
  kBad = 2,      // number of the last step with a non-finite gradient
  kSkipped = 3,  // steps that changed nothing
};

struct Options {
  float lr;
  float beta1, beta2;
  float one_minus_beta1, one_minus_beta2;  // rounded once, from float64
  float log_beta1, log_beta2;              // natural logarithms; -inf for 0
  float eps, weight_decay;
  float log_ema_decay;  // unused without an average
  float ema_share;
  int ema_every;
  bool zero_grads;
  bool last;  // ends the step
};

// What all elements of one parameter share in one step.
struct Step {
  float step_size;        // lr / (1 - beta1^t)
  float root_correction;  // 1 / sqrt(1 - beta2^t)
  float ema_weight;       // of the new value; 0: the average stands still
};

// `t` counts this step: 1 in the first. expm1 keeps 1 - beta^t exact to a few ulp where the power is close to 1.
LN_HD Step step_of(const Options& o, float lr, float t) {
  const float correction1 = -expm1f(t * o.log_beta1), correction2 = -expm1f(t * o.log_beta2);
  float weight = 1.0f;
  if (t > float(o.ema_every)) {
    const float every = float(o.ema_every);
    const float least = fminf(1.0f, every / (o.ema_share * t));
    weight = fmodf(t, every) == 0.0f ? fmaxf(least, expm1f(every * o.log_ema_decay) / expm1f(t * o.log_ema_decay)) : 0.0f;
  }
  return {lr / correction1, 1.0f / sqrtf(correction2), weight};
}

LN_HD void update_element(
    const Options& o, const Step& s, float inverse_scale, float grad, float& param, float& exp_avg, float& exp_avg_sq) {
  const float g = grad * inverse_scale + o.weight_decay * param;
  exp_avg += o.one_minus_beta1 * (g - exp_avg);
  exp_avg_sq = o.beta2 * exp_avg_sq + o.one_minus_beta2 * g * g;
  param -= s.step_size * (exp_avg / (sqrtf(exp_avg_sq) * s.root_correction + o.eps));
}

// Grows by (1 - decay) / (1 - decay^t) of the difference: the plain average from 0, divided by 1 - decay^t.
LN_HD void average_element(const Step& s, float param, float& ema) {
  ema = s.ema_weight == 1.0f ? param : ema + s.ema_weight * (param - ema);
}

}  // namespace lightning_nerf::adam
