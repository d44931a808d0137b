// No CPU kernels: on the CPU torch's own matrix products serve.
#include "stable.h"

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "fused_mlp(Tensor x, Tensor weight1, Tensor weight2, Tensor? weight3, Tensor? weight4, Tensor? weight5, ScalarType "
      "dtype) -> Tensor");
  m.def(
      "fused_mlp_backward(Tensor grad, Tensor x, Tensor weight1, Tensor weight2, Tensor? weight3, Tensor? weight4, Tensor? "
      "weight5, ScalarType dtype, bool for_input, bool for_weights) -> (Tensor, Tensor)");
}
