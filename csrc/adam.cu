#include "adam.h"
#include "cuda.cuh"

#include <cuda_fp16.h>

#include <algorithm>

namespace lightning_nerf::adam {
namespace {

constexpr int kTensors = 32;       // parameters per launch; their pointers travel as kernel arguments
constexpr int kReadChunk = 4096;   // gradients that a block checks: four float4 per thread
constexpr int kWriteChunk = 2048;  // parameters that a block updates: two float4 per thread and array

// Some parameters and the blocks that work on them: tensor i owns the chunks first_chunk[i] to first_chunk[i + 1].
struct Batch {
  Parameter tensors[kTensors];
  int32_t first_chunk[kTensors + 1];
  uint32_t vector;  // bit i: every pointer of tensor i allows 16-byte accesses
  int32_t n;
};
static_assert(sizeof(Batch) + sizeof(Scalars) + sizeof(Options) < 4096, "limit of kernel arguments");

bool aligned(const Parameter& t) {
  const auto bits = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
  return (bits(t.param) | bits(t.grad) | bits(t.exp_avg) | bits(t.exp_avg_sq) | bits(t.ema)) % 16 == 0 &&
         bits(t.half) % 8 == 0;
}

// run(batch, number of chunks, is it the last?), at least once.
template <typename Run>
void for_batches(const std::vector<Parameter>& parameters, int chunk, const Run& run) {
  size_t next = 0;
  do {
    Batch batch = {};
    int64_t chunks = 0;
    for (; next < parameters.size() && batch.n < kTensors; ++next) {
      const Parameter& t = parameters[next];
      batch.tensors[batch.n] = t;
      batch.vector |= uint32_t(aligned(t)) << batch.n;
      chunks += (t.n + chunk - 1) / chunk;
      STD_TORCH_CHECK(chunks < (int64_t(1) << 31), "too many parameters");
      batch.first_chunk[++batch.n] = int32_t(chunks);
    }
    run(batch, chunks, next == parameters.size());
  } while (next < parameters.size());
}

__device__ int tensor_of(const Batch& batch, int chunk) {
  int i = 0;
  while (i + 1 < batch.n && chunk >= batch.first_chunk[i + 1]) ++i;
  return i;
}

__global__ void begin_kernel(
    const __grid_constant__ Batch batch,
    int32_t* __restrict__ control,  // [4]
    bool check_grads) {
  const int32_t now = control[kEnded] + 1;
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) control[kNow] = now;
    if (threadIdx.x < batch.n) *batch.tensors[threadIdx.x].step += 1.0f;
  }
  if (!check_grads) return;
  const int which = tensor_of(batch, int(blockIdx.x));
  const float* grad = batch.tensors[which].grad;
  const int64_t n = batch.tensors[which].n;
  const int64_t begin = (int64_t(blockIdx.x) - batch.first_chunk[which]) * kReadChunk;
  float sum = 0.0f;  // 0 * Inf and 0 * NaN are NaN
  int64_t rest = begin;
  if (batch.vector >> which & 1) {
    constexpr int kLoads = kReadChunk / (4 * kThreads);
    float4 value[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int64_t i = begin + 4 * (k * kThreads + int(threadIdx.x));
      value[k] = i + 4 <= n ? *reinterpret_cast<const float4*>(grad + i) : float4{};
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      sum = fmaf(value[k].x, 0.0f, fmaf(value[k].y, 0.0f, sum));
      sum = fmaf(value[k].z, 0.0f, fmaf(value[k].w, 0.0f, sum));
    }
    rest = max(begin, n / 4 * 4);
  }
  const int64_t end = min(n, begin + kReadChunk);
  for (int64_t i = rest + threadIdx.x; i < end; i += kThreads) sum = fmaf(grad[i], 0.0f, sum);
  if (sum != sum) control[kBad] = now;  // all threads that find one write the same value
}

__device__ float4 load(const float* values, int64_t i) { return __ldcs(reinterpret_cast<const float4*>(values + i)); }
__device__ void store(float* values, int64_t i, float4 value) { __stcs(reinterpret_cast<float4*>(values + i), value); }
__device__ void store_half(void* values, int64_t i, float4 value) {
  const __half2 low = __floats2half2_rn(value.x, value.y), high = __floats2half2_rn(value.z, value.w);
  uint2 bits;
  bits.x = *reinterpret_cast<const uint32_t*>(&low);
  bits.y = *reinterpret_cast<const uint32_t*>(&high);
  *reinterpret_cast<uint2*>(static_cast<__half*>(values) + i) = bits;
}

// Moments and masters stream past the cache (ldcs, stcs); the fp16 copy stays there for the next forward pass.
__global__ void __launch_bounds__(kThreads)
    step_kernel(const __grid_constant__ Batch batch, const Scalars scalars, const Options o) {
  __shared__ Step shared_step;
  __shared__ float shared_scale;
  __shared__ bool shared_skip;
  // From the end on: what adam_begin_ read last is still in the cache.
  const int chunk = int(gridDim.x - 1 - blockIdx.x);
  const int which = tensor_of(batch, chunk);
  const Parameter t = batch.tensors[which];
  const int64_t begin = (int64_t(chunk) - batch.first_chunk[which]) * kWriteChunk;
  const bool vector = batch.vector >> which & 1;

  constexpr int kLoads = kWriteChunk / (4 * kThreads);
  float4 param[kLoads], grad[kLoads], exp_avg[kLoads], exp_avg_sq[kLoads], ema[kLoads];
  const auto index = [&](int k) { return begin + 4 * (k * kThreads + int(threadIdx.x)); };
  const auto inside = [&](int k) { return vector && index(k) + 4 <= t.n; };
#pragma unroll
  for (int k = 0; k < kLoads; ++k) {
    if (!inside(k)) continue;
    grad[k] = load(t.grad, index(k));
    param[k] = load(t.param, index(k));
    exp_avg[k] = load(t.exp_avg, index(k));
    exp_avg_sq[k] = load(t.exp_avg_sq, index(k));
  }
  if (threadIdx.x == 0) {
    const bool bad = scalars.control[kBad] == scalars.control[kNow];
    shared_skip = bad || (scalars.found_inf && *scalars.found_inf != 0.0f);
    shared_scale = scalars.grad_scale ? 1.0f / *scalars.grad_scale : 1.0f;
    shared_step = step_of(o, scalars.lr ? *scalars.lr : o.lr, t.step ? *t.step : 1.0f);
  }
  __syncthreads();
  const Step s = shared_step;
  const float inverse_scale = shared_scale;
  const bool skip = shared_skip, average = t.ema && s.ema_weight != 0.0f && !skip;

#pragma unroll
  for (int k = 0; k < kLoads; ++k)
    if (average && inside(k)) ema[k] = load(t.ema, index(k));
#pragma unroll
  for (int k = 0; k < kLoads; ++k) {
    if (!inside(k)) continue;
    const int64_t i = index(k);
    if (!skip) {
      update_element(o, s, inverse_scale, grad[k].x, param[k].x, exp_avg[k].x, exp_avg_sq[k].x);
      update_element(o, s, inverse_scale, grad[k].y, param[k].y, exp_avg[k].y, exp_avg_sq[k].y);
      update_element(o, s, inverse_scale, grad[k].z, param[k].z, exp_avg[k].z, exp_avg_sq[k].z);
      update_element(o, s, inverse_scale, grad[k].w, param[k].w, exp_avg[k].w, exp_avg_sq[k].w);
      store(t.param, i, param[k]);
      store(t.exp_avg, i, exp_avg[k]);
      store(t.exp_avg_sq, i, exp_avg_sq[k]);
    }
    if (average) {
      average_element(s, param[k].x, ema[k].x);
      average_element(s, param[k].y, ema[k].y);
      average_element(s, param[k].z, ema[k].z);
      average_element(s, param[k].w, ema[k].w);
      store(t.ema, i, ema[k]);
    }
    if (t.half) store_half(t.half, i, param[k]);
    if (o.zero_grads) *reinterpret_cast<float4*>(t.grad + i) = float4{};
  }

  const int64_t rest = vector ? max(begin, t.n / 4 * 4) : begin, end = min(t.n, begin + kWriteChunk);
  for (int64_t i = rest + threadIdx.x; i < end; i += kThreads) {
    if (!skip) update_element(o, s, inverse_scale, t.grad[i], t.param[i], t.exp_avg[i], t.exp_avg_sq[i]);
    if (average) average_element(s, t.param[i], t.ema[i]);
    if (t.half) static_cast<__half*>(t.half)[i] = __float2half_rn(t.param[i]);
    if (o.zero_grads) t.grad[i] = 0.0f;
  }

  // adam_begin_ counted this step; in a skipped one no block uses the count.
  if (blockIdx.x == 0) {
    if (skip && threadIdx.x < batch.n) *batch.tensors[threadIdx.x].step -= 1.0f;
    if (o.last && threadIdx.x == 0) {
      scalars.control[kEnded] = scalars.control[kNow];
      scalars.control[kSkipped] += skip;
    }
  }
}

void begin(const Tensor& like, const std::vector<Parameter>& parameters, int32_t* state, bool check_grads) {
  const Launch launch(like);
  for_batches(parameters, kReadChunk, [&](const Batch& batch, int64_t chunks, bool) {
    const unsigned int n_blocks = check_grads && chunks > 0 ? static_cast<unsigned int>(chunks) : 1;
    begin_kernel<<<n_blocks, kThreads, 0, launch.stream>>>(batch, state, check_grads);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

void update(const Tensor& like, const std::vector<Parameter>& parameters, const Scalars& scalars, const Options& options) {
  const Launch launch(like);
  Options o = options;
  for_batches(parameters, kWriteChunk, [&](const Batch& batch, int64_t chunks, bool last_batch) {
    o.last = options.last && last_batch;
    const unsigned int n_blocks = chunks > 0 ? static_cast<unsigned int>(chunks) : 1;
    step_kernel<<<n_blocks, kThreads, 0, launch.stream>>>(batch, scalars, o);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("adam_begin_", TORCH_BOX(&adam_begin_<begin>));
  m.impl("adam_", TORCH_BOX(&adam_<update>));
}

}  // namespace lightning_nerf::adam
