#include "cuda.cuh"
#include "spherical_harmonics.cuh"

namespace lightning_nerf {
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
  if (i < n) spherical_harmonics_row<Degree>(directions + 3 * i, rows + threadIdx.x * stride);
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
  if (i < n)
    spherical_harmonics_row_backward<Degree>(rows + threadIdx.x * stride, directions + 3 * i, grad_directions + 3 * i);
}

void check_arguments(const Tensor& directions, int64_t degree) {
  check_float(directions, "directions");
  STD_TORCH_CHECK(degree >= 1 && degree <= kMaxDegree, "degree: expected 1 to ", kMaxDegree, ", got ", degree);
}

Tensor spherical_harmonics(const Tensor& directions, int64_t degree) {
  check_arguments(directions, degree);
  const Launch launch(directions);
  const int64_t n = directions.size(0);
  Tensor out = empty(directions, {n, degree * degree}, ScalarType::Float);
  if (n == 0) return out;
  for_degree(degree, [&](auto d) {
    forward_kernel<d()><<<blocks(n), kThreads, 0, launch.stream>>>(data<float>(directions), n, mutable_data<float>(out));
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

Tensor spherical_harmonics_backward(const Tensor& grad, const Tensor& directions, int64_t degree) {
  check_arguments(directions, degree);
  check_float(grad, "grad");
  const Launch launch(directions);
  const int64_t n = directions.size(0);
  Tensor out = empty(directions, {n, 3}, ScalarType::Float);
  if (n == 0) return out;
  for_degree(degree, [&](auto d) {
    backward_kernel<d()><<<blocks(n), kThreads, 0, launch.stream>>>(
        data<float>(grad), data<float>(directions), n, mutable_data<float>(out));
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("spherical_harmonics", TORCH_BOX(&lightning_nerf::spherical_harmonics));
  m.impl("spherical_harmonics_backward", TORCH_BOX(&lightning_nerf::spherical_harmonics_backward));
}
