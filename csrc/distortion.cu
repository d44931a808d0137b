#include "cuda.cuh"
#include "distortion.h"
#include "warp_sums.cuh"

namespace lightning_nerf::distortion {
namespace {

struct Entry {
  float weight, middle, length;
};

// A sample of the ray, or past its end one without weight.
__device__ Entry entry(const Samples& s, int64_t i, int64_t end, float origin) {
  if (i >= end) return {0.0f, 0.0f, 0.0f};
  return {s.weights[i], s.middle(i, origin), s.length(i)};
}

// What lies in front of each lane's sample: `carried` of earlier chunks, which grows by this one.
__device__ Sums<float> in_front(Entry e, int lane, Sums<float>& carried) {
  const float moment = e.weight * e.middle;
  const Sums<float> upto = {inclusive(e.weight, lane), inclusive(moment, lane)};
  const Sums<float> before = {carried.weight + (upto.weight - e.weight), carried.moment + (upto.moment - moment)};
  carried.weight += __shfl_sync(kFullWarp, upto.weight, kWarp - 1);
  carried.moment += __shfl_sync(kFullWarp, upto.moment, kWarp - 1);
  return before;
}

// A warp per ray.
__global__ void __launch_bounds__(kThreads) forward_kernel(const Samples s, float* __restrict__ losses) {
  const int lane = threadIdx.x % kWarp;
  const int64_t ray = (blockIdx.x * int64_t(kThreads) + threadIdx.x) / kWarp;
  if (ray >= s.n_rays) return;
  const int64_t begin = s.begin(ray), end = s.begin(ray + 1);
  const float origin = begin < end ? s.t_starts[begin] : 0.0f;
  Sums<float> carried = {0.0f, 0.0f};
  float loss = 0.0f;
  for (int64_t first = begin; first < end; first += kWarp) {
    const Entry e = entry(s, first + lane, end, origin);
    const Sums<float> before = in_front(e, lane, carried);
    loss += e.weight * (2.0f * (e.middle * before.weight - before.moment) + e.weight * e.length * (1.0f / 3.0f));
  }
  loss = total(loss);
  if (lane == 0) losses[ray] = loss;
}

// A warp per ray walks it twice: for its sums, then for each sample's share; the second time it lies in the cache.
__global__ void __launch_bounds__(kThreads) backward_kernel(
    const Samples s,
    const float* __restrict__ grad_losses,  // [R]
    float* __restrict__ grad) {             // [N]
  const int lane = threadIdx.x % kWarp;
  const int64_t ray = (blockIdx.x * int64_t(kThreads) + threadIdx.x) / kWarp;
  if (ray >= s.n_rays) return;
  const int64_t begin = s.begin(ray), end = s.begin(ray + 1);
  if (begin >= end) return;
  const float origin = s.t_starts[begin], factor = grad_losses[ray];
  Sums<float> all = {0.0f, 0.0f};
  for (int64_t i = begin + lane; i < end; i += kWarp) {
    all.weight += s.weights[i];
    all.moment += s.weights[i] * s.middle(i, origin);
  }
  all = {total(all.weight), total(all.moment)};
  Sums<float> carried = {0.0f, 0.0f};
  for (int64_t first = begin; first < end; first += kWarp) {
    const Entry e = entry(s, first + lane, end, origin);
    const Sums<float> before = in_front(e, lane, carried);
    const Sums<float> behind = {all.weight - before.weight - e.weight, all.moment - before.moment - e.weight * e.middle};
    if (first + lane < end) grad[first + lane] = factor * slope<float>(e.weight, e.middle, e.length, before, behind);
  }
}

__global__ void tail_kernel(const Samples s, float* __restrict__ grad) {
  const int64_t i = s.begin(s.n_rays) + blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (i < s.n) grad[i] = 0.0f;
}

void forward(const Tensor& like, const Samples& s, float* losses) {
  const Launch launch(like);
  if (s.n_rays == 0) return;
  forward_kernel<<<blocks(s.n_rays * kWarp), kThreads, 0, launch.stream>>>(s, losses);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void backward(const Tensor& like, const Samples& s, const float* grad_losses, float* grad) {
  const Launch launch(like);
  if (s.n_rays > 0) {
    backward_kernel<<<blocks(s.n_rays * kWarp), kThreads, 0, launch.stream>>>(s, grad_losses, grad);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (s.n == 0) return;
  tail_kernel<<<blocks(s.n), kThreads, 0, launch.stream>>>(s, grad);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("distortion", TORCH_BOX(&distortion<forward>));
  m.impl("distortion_backward", TORCH_BOX(&distortion_backward<backward>));
}

}  // namespace lightning_nerf::distortion
