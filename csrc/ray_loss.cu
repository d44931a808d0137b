#include "cuda.cuh"
#include "ray_loss.h"

namespace lightning_nerf::ray_loss {
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
__global__ void __launch_bounds__(kThreads) forward_kernel(
    const Arguments a,
    float* __restrict__ partials,    // [2, blocks] sums of Huber's function and of squares
    int32_t* __restrict__ counts) {  // [blocks]
  Sums s = {0.0f, 0.0f, 0};
  for (int64_t ray = blockIdx.x * int64_t(kThreads) + threadIdx.x; ray < a.n_rays; ray += gridDim.x * int64_t(kThreads)) {
    if (!a.counts(ray)) continue;
    ++s.count;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const float error = a.error(ray, c);
      s.huber += huber(error, a.delta);
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
__global__ void __launch_bounds__(kThreads) sum_kernel(
    const float* __restrict__ partials,  // [2, n]
    const int32_t* __restrict__ counts,  // [n]
    int n,
    float* __restrict__ loss,        // []
    float* __restrict__ mse,         // []
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

void forward(const Tensor& like, const Arguments& a, const Losses& out) {
  STD_TORCH_CHECK(a.n_rays < (int64_t(1) << 31), "ray_loss takes less than 2^31 rays");
  const Launch launch(like);
  const int64_t needed = blocks(a.n_rays), n = needed < kMaxPartials ? needed : kMaxPartials;
  Tensor partials = empty(like, {2 * n}, ScalarType::Float), counts = empty(like, {n}, ScalarType::Int);
  if (n > 0) {
    forward_kernel<<<static_cast<unsigned>(n), kThreads, 0, launch.stream>>>(
        a, mutable_data<float>(partials), mutable_data<int32_t>(counts));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  sum_kernel<<<1, kThreads, 0, launch.stream>>>(
      data<float>(partials), data<int32_t>(counts), int(n), out.loss, out.mse, out.n_rays);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// A thread per color.
__global__ void backward_kernel(
    const Arguments a,
    const float* __restrict__ grad_loss,  // []
    const int64_t* __restrict__ n_rays,   // []
    float* __restrict__ grad) {           // [R, 3]
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (i >= 3 * a.n_rays) return;
  const int64_t ray = i / 3;
  const float share = *grad_loss * mean_share(*n_rays);
  grad[i] = a.counts(ray) ? share * huber_slope(a.error(ray, int(i - 3 * ray)), a.delta) : 0.0f;
}

void backward(const Tensor& like, const Arguments& a, const float* grad_loss, const int64_t* n_rays, float* grad) {
  const Launch launch(like);
  if (a.n_rays == 0) return;
  backward_kernel<<<blocks(3 * a.n_rays), kThreads, 0, launch.stream>>>(a, grad_loss, n_rays, grad);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("ray_loss", TORCH_BOX(&ray_loss<forward>));
  m.impl("ray_loss_backward", TORCH_BOX(&ray_loss_backward<backward>));
}

}  // namespace lightning_nerf::ray_loss
