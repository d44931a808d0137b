// What the two halves of a wide perceptron's backward pass share.
#pragma once
#include "cuda.cuh"

namespace lightning_nerf::wide_mlp {

// The gradients of all weights and biases: from dZ of the heads (outer) and of the hidden layers (inner), and from what the
// layers took (inputs, hidden).
Tensor weight_gradients(
    const Launch& launch, const Tensor& outer, const Tensor& inner, const Tensor& inputs, const Tensor& hidden,
    const Tensor& items, int64_t n_pieces, const Tensor& sources, const int* count, int64_t n);

}  // namespace lightning_nerf::wide_mlp
