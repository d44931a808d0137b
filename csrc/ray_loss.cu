#include "cuda.cuh"
#include "ray_loss.h"

namespace lightning_nerf {
namespace {

constexpr int64_t kMaxPartials = 512;

struct Sums {
  float huber, square;
  int count;
};

// The sums over a block, in a fixed order; good in thread 0.
__device__ Sums block_sums(Sums s) {
  __shared__ Sums of_warp[kThreads / 32];
  const int lane = threadIdx.x % 32;
  for (int pass = 0; pass < 2; ++pass) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      s.huber += __shfl_xor_sync(kFullWarp, s.huber, step);
      s.square += __shfl_xor_sync(kFullWarp, s.square, step);
      s.count += __shfl_xor_sync(kFullWarp, s.count, step);
    }
    if (pass == 1) break;
    if (lane == 0) of_warp[threadIdx.x / 32] = s;
    __syncthreads();
    s = lane < kThreads / 32 ? of_warp[lane] : Sums{0.0f, 0.0f, 0};
  }
  return s;
}

// A thread per ray, or per few: which ones follows from R alone, and so do the bits of the sums.
__global__ void __launch_bounds__(kThreads) ray_loss_kernel(
    const RayLoss r,
    float* __restrict__ partials,  // [2, blocks] sums of Huber's function and of squares
    int32_t* __restrict__ counts) {  // [blocks]
  Sums s = {0.0f, 0.0f, 0};
  for (int64_t ray = blockIdx.x * int64_t(kThreads) + threadIdx.x; ray < r.n_rays; ray += gridDim.x * int64_t(kThreads)) {
    if (!r.counts(ray)) continue;
    ++s.count;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const float error = r.error(ray, c);
      s.huber += huber(error, r.delta);
      s.square += error * error;
    }
  }
  s = block_sums(s);
  if (threadIdx.x != 0) return;
  partials[blockIdx.x] = s.huber;
  partials[gridDim.x + blockIdx.x] = s.square;
  counts[blockIdx.x] = s.count;
}

// One block.
__global__ void __launch_bounds__(kThreads) ray_loss_sum_kernel(
    const float* __restrict__ partials,   // [2, n]
    const int32_t* __restrict__ counts,  // [n]
    int n,
    float* __restrict__ loss,  // []
    float* __restrict__ mse,  // []
    int64_t* __restrict__ n_rays) {  // []
  Sums s = {0.0f, 0.0f, 0};
  for (int i = threadIdx.x; i < n; i += kThreads) {
    s.huber += partials[i];
    s.square += partials[n + i];
    s.count += counts[i];
  }
  s = block_sums(s);
  if (threadIdx.x != 0) return;
  const float share = mean_share(s.count);
  *loss = s.huber * share;
  *mse = s.square * share;
  *n_rays = s.count;
}

RayLosses ray_loss(
    const Tensor& rgb, const Tensor& target, const std::optional<Tensor>& alpha, const std::optional<Tensor>& background,
    const Tensor& kept, const std::optional<Tensor>& mask, double delta) {
  const RayLoss r = ray_loss_arguments(rgb, target, alpha, background, kept, mask, delta);
  STD_TORCH_CHECK(r.n_rays < (int64_t(1) << 31), "ray_loss takes less than 2^31 rays");
  const Launch launch(rgb);
  Tensor loss = empty(rgb, {}, ScalarType::Float), mse = empty(rgb, {}, ScalarType::Float);
  Tensor n_rays = empty(rgb, {}, ScalarType::Long);
  const int64_t needed = blocks(r.n_rays), n = needed < kMaxPartials ? needed : kMaxPartials;
  Tensor partials = empty(rgb, {2 * n}, ScalarType::Float), counts = empty(rgb, {n}, ScalarType::Int);
  if (n > 0) {
    ray_loss_kernel<<<static_cast<unsigned>(n), kThreads, 0, launch.stream>>>(
        r, mutable_data<float>(partials), mutable_data<int32_t>(counts));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  ray_loss_sum_kernel<<<1, kThreads, 0, launch.stream>>>(
      data<float>(partials), data<int32_t>(counts), int(n), mutable_data<float>(loss), mutable_data<float>(mse),
      mutable_data<int64_t>(n_rays));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {loss, mse, n_rays};
}

// A thread per colour.
__global__ void ray_loss_backward_kernel(
    const RayLoss r,
    const float* __restrict__ grad_loss,  // []
    const int64_t* __restrict__ n_rays,  // []
    float* __restrict__ grad) {  // [R, 3]
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (i >= 3 * r.n_rays) return;
  const int64_t ray = i / 3;
  const float share = *grad_loss * mean_share(*n_rays);
  grad[i] = r.counts(ray) ? share * huber_slope(r.error(ray, int(i - 3 * ray)), r.delta) : 0.0f;
}

Tensor ray_loss_backward(
    const Tensor& grad_loss, const Tensor& rgb, const Tensor& target, const std::optional<Tensor>& alpha,
    const std::optional<Tensor>& background, const Tensor& kept, const std::optional<Tensor>& mask, const Tensor& n_rays,
    double delta) {
  const RayLoss r = ray_loss_arguments(rgb, target, alpha, background, kept, mask, delta);
  check_float(grad_loss, "grad_loss");
  check(n_rays, ScalarType::Long, "n_rays");
  const Launch launch(rgb);
  Tensor grad = empty(rgb, {r.n_rays, 3}, ScalarType::Float);
  if (r.n_rays == 0) return grad;
  ray_loss_backward_kernel<<<blocks(3 * r.n_rays), kThreads, 0, launch.stream>>>(
      r, data<float>(grad_loss), data<int64_t>(n_rays), mutable_data<float>(grad));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return grad;
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("ray_loss", TORCH_BOX(&lightning_nerf::ray_loss));
  m.impl("ray_loss_backward", TORCH_BOX(&lightning_nerf::ray_loss_backward));
}
