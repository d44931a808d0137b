#include "cuda.cuh"
#include "sample_points.h"

namespace lightning_nerf::sample_points {
namespace {

// A thread per coordinate: neighbors store to neighbors, and the three reads of a sample's t come from one line.
__global__ void sample_kernel(Arguments a) {
  const int64_t element = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (element >= 3 * a.n) return;
  const int64_t i = element / 3;
  sample_point(a, i, int(element - 3 * i));
}

void sample_all(const Tensor& like, const Arguments& a) {
  const Launch launch(like);
  if (a.n == 0) return;
  sample_kernel<<<blocks(3 * a.n), kThreads, 0, launch.stream>>>(a);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) { m.impl("sample_points", TORCH_BOX(&sample_points<sample_all>)); }

}  // namespace lightning_nerf::sample_points
