#include "cuda.cuh"
#include "importance.h"

namespace lightning_nerf::importance {
namespace {

__global__ void search_kernel(const RayLists keys, const Queries queries) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i < queries.n) search(keys, queries, i);
}

// A warp per ray: it reads the ray's CDF once from memory, and again from the cache while each lane searches its sample.
__global__ void __launch_bounds__(kThreads) resample_kernel(const Resampling r) {
  const int64_t ray = (blockIdx.x * int64_t(kThreads) + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (ray >= r.rays.n_rays) return;  // the whole warp
  const Resampling::Range range = r.range(ray);
  if (!range.any_edge) return;
  const int64_t begin = r.rays.begin(ray), count = r.rays.count(ray);
  bool finite = true;
  for (int64_t j = lane; j < count; j += 32) finite = finite && isfinite(r.cdfs[begin + j]);
  const Inverse inverse = r.inverse(ray, range.n, __all_sync(kFullWarp, finite));
  float* samples = r.samples + range.sample;
  float* edges = r.edges + range.edge;
  const int64_t n = range.n;
  if (lane == 0 && n < 2) {
    edges[0] = inverse.first();
    if (n == 1) edges[1] = inverse.last();
  }
  float carried = 0.0f;
  for (int64_t base = 0; base < n; base += 32) {
    const int64_t k = base + lane;
    const float sample = k < n ? inverse.sample(k) : 0.0f;
    const float below = __shfl_up_sync(kFullWarp, sample, 1), next = __shfl_down_sync(kFullWarp, sample, 1);
    const float before = lane == 0 ? carried : below;
    carried = __shfl_sync(kFullWarp, sample, 31);
    if (k >= n) continue;
    samples[k] = sample;
    if (n < 2) continue;
    edges[k] = k == 0 ? inverse.first_edge(sample, next) : (before + sample) * 0.5f;
    if (k == n - 1) edges[n] = inverse.last_edge(before, sample);
  }
}

void search_all(const Tensor& like, const RayLists& keys, const Queries& queries) {
  const Launch launch(like);
  if (queries.n == 0) return;
  search_kernel<<<blocks(queries.n), kThreads, 0, launch.stream>>>(keys, queries);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void resample(const Tensor& like, const Resampling& r) {
  const Launch launch(like);
  if (r.rays.n_rays == 0) return;
  resample_kernel<<<blocks(r.rays.n_rays * 32), kThreads, 0, launch.stream>>>(r);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("searchsorted", TORCH_BOX(&searchsorted<search_all>));
  m.impl("importance_sampling", TORCH_BOX(&importance_sampling<resample>));
}

}  // namespace lightning_nerf::importance
