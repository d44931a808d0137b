// From counts to offsets, for the ops that count, pack and write in one call.
#pragma once
#include "stable.h"

namespace lightning_nerf {

// offsets [R + 1], and which rays are kept [R]: those that fit, where `before` is given only if that holds too.
std::tuple<Tensor, Tensor> pack_on_cpu(
    const Tensor& counts, const std::optional<Tensor>& before, int64_t capacity);
std::tuple<Tensor, Tensor> pack_on_cuda(
    const Tensor& counts, const std::optional<Tensor>& before, int64_t capacity);

}  // namespace lightning_nerf
