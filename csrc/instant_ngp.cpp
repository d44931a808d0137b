// No CPU kernels: on the CPU the field runs op by op.
#include "stable.h"

STABLE_TORCH_LIBRARY_FRAGMENT(lightning_nerf, m) {
  m.def(
      "instant_ngp_field(Tensor positions, Tensor? directions, Tensor table, Tensor working, Tensor levels, Tensor? "
      "encoded, "
      "Tensor? sources, Tensor density1, Tensor density2, Tensor color1, Tensor color2, Tensor color3, float density_bias, "
      "bool bfloat16, bool keep_features) -> (Tensor, Tensor, Tensor)");
  m.def(
      "instant_ngp_field_backward(Tensor? grad_density, Tensor? grad_rgb, Tensor positions, Tensor? directions, Tensor "
      "features, Tensor? sources, Tensor density1, Tensor density2, Tensor color1, Tensor color2, Tensor color3, float "
      "density_bias) -> (Tensor, Tensor)");
  m.def(
      "instant_ngp_ray_densities(Tensor origins, Tensor directions, Tensor t_starts, Tensor t_ends, Tensor offsets, Tensor "
      "working, Tensor levels, Tensor density1, Tensor density2, Tensor to_unit, float density_bias, float early_stop_eps, "
      "bool bfloat16, bool keep_features, int contraction=0) -> (Tensor, Tensor)");
  m.def(
      "instant_ngp_render(Tensor origins, Tensor directions, Tensor t_starts, Tensor t_ends, Tensor offsets, Tensor "
      "working, "
      "Tensor levels, Tensor density1, Tensor density2, Tensor color1, Tensor color2, Tensor color3, Tensor to_unit, float "
      "density_bias, float early_stop_eps, Tensor alpha_thre, bool bfloat16, int contraction=0) -> (Tensor, Tensor, "
      "Tensor, Tensor)");
}
