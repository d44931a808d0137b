// No CPU kernels: on the CPU torch's own matrix products serve.
#include "stable.h"

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "wide_mlp(Tensor x, Tensor? x2, Tensor? index2, Tensor parameters, Tensor? count, Tensor links, Tensor index, Tensor "
      "bias_index, Tensor backward_links, Tensor backward_index, Tensor items, Tensor sources, int n_outputs, int "
      "saved_blocks, int n_pieces, bool save, ScalarType dtype, int frequencies, bool include_input, float scale, int "
      "frequencies2, bool include_input2, float scale2) -> (Tensor y, Tensor inputs, Tensor hidden, Tensor signs)");
  m.def(
      "wide_mlp_backward(Tensor grad, Tensor inputs, Tensor hidden, Tensor signs, Tensor parameters, Tensor? count, "
      "Tensor backward_links, Tensor backward_index, Tensor items, Tensor sources, int n_pieces, int input_columns, "
      "ScalarType dtype) -> (Tensor parameters, Tensor input)");
}
