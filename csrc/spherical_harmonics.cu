#include "cuda.cuh"
#include "spherical_harmonics.h"

namespace lightning_nerf::spherical_harmonics {
namespace {

// Rows of degree^2 floats pass through shared memory, so that global memory is read and written in order. An odd stride
// keeps the threads' rows in different banks.
template <int Degree>
struct Rows {
  static constexpr int kWidth = Degree * Degree;
  static constexpr int kStride = kWidth | 1;
};

template <int Degree>
__global__ void forward_kernel(
    const float* __restrict__ directions,  // [n, 3]
    int64_t n,
    float* __restrict__ out) {  // [n, Degree^2]
  constexpr int width = Rows<Degree>::kWidth, stride = Rows<Degree>::kStride;
  __shared__ float rows[kThreads * stride];
  const int64_t first = blockIdx.x * int64_t(kThreads), i = first + threadIdx.x;
  if (i < n) row<Degree>(directions + 3 * i, rows + threadIdx.x * stride);
  __syncthreads();
  const int count = int(n - first < kThreads ? n - first : kThreads) * width;
  for (int j = threadIdx.x; j < count; j += kThreads) out[first * width + j] = rows[j / width * stride + j % width];
}

template <int Degree>
__global__ void backward_kernel(
    const float* __restrict__ grad,        // [n, Degree^2]
    const float* __restrict__ directions,  // [n, 3]
    int64_t n,
    float* __restrict__ grad_directions) {  // [n, 3]
  constexpr int width = Rows<Degree>::kWidth, stride = Rows<Degree>::kStride;
  __shared__ float rows[kThreads * stride];
  const int64_t first = blockIdx.x * int64_t(kThreads), i = first + threadIdx.x;
  const int count = int(n - first < kThreads ? n - first : kThreads) * width;
  for (int j = threadIdx.x; j < count; j += kThreads) rows[j / width * stride + j % width] = grad[first * width + j];
  __syncthreads();
  if (i < n) row_backward<Degree>(rows + threadIdx.x * stride, directions + 3 * i, grad_directions + 3 * i);
}

void forward(const Tensor& like, const Arguments& a, float* out) {
  const Launch launch(like);
  if (a.n == 0) return;
  for_degree(a.degree, [&](auto d) {
    forward_kernel<d()><<<blocks(a.n), kThreads, 0, launch.stream>>>(a.directions, a.n, out);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void backward(const Tensor& like, const Arguments& a, const float* grad, float* grad_directions) {
  const Launch launch(like);
  if (a.n == 0) return;
  for_degree(a.degree, [&](auto d) {
    backward_kernel<d()><<<blocks(a.n), kThreads, 0, launch.stream>>>(grad, a.directions, a.n, grad_directions);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("spherical_harmonics", TORCH_BOX(&spherical_harmonics<forward>));
  m.impl("spherical_harmonics_backward", TORCH_BOX(&spherical_harmonics_backward<backward>));
}

}  // namespace lightning_nerf::spherical_harmonics
