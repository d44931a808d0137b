#include "composite.h"
#include "composite_channels.cuh"
#include "cuda.cuh"

namespace lightning_nerf::composite {
namespace {

template <class G, class Channels>
__global__ void __launch_bounds__(kBlock)
    forward_kernel(const Samples s, const float early_stop_eps, const Composited out) {
  constexpr int kPer = G::kPer;
  const Ray<G> ray(s);
  const int n_chunks = ray.chunks();
  Channels channels(s, ray);
  float opacity = 0.0f, depth = 0.0f, transmittance = 1.0f;
  int used = ray.count;
  int chunk = 0;
  for (; chunk < n_chunks; ++chunk) {
    const int j = ray.first(chunk);
    Run<G> run;
    typename Channels::Rows rows;
    run.load(s, ray, j);
    channels.load(j, rows);

    Absorption a[kPer];
    float before[kPer], weight[kPer], alpha[kPer];
    run.absorb(s, ray, j, a);
    transmittances<G>(a, ray.lane, transmittance, before);
    if (early_stop_eps > 0.0f) {
      // The first sample that sees too little ends the ray, whatever rounding lets the lanes behind it see.
      int stop = kPer;
#pragma unroll
      for (int k = kPer - 1; k >= 0; --k)
        if (ray.holds(j + k) && before[k] < early_stop_eps) stop = k;
      const unsigned warp_stops = __ballot_sync(kFullWarp, stop < kPer);
      const unsigned stops = warp_stops << (32 - G::kLanes - (threadIdx.x % 32 - ray.lane)) >> (32 - G::kLanes);
      const int stopping_lane = stops ? __ffs(stops) - 1 : 0;
      stop = __shfl_sync(kFullWarp, stop, stopping_lane, G::kLanes);
      if (stops) used = min(used, chunk * G::kChunk + stopping_lane * kPer + stop - ray.lead);
#pragma unroll
      for (int k = 0; k < kPer; ++k)
        if (j + k >= ray.lead + used) a[k].alpha = before[k] = 0.0f;
    }
#pragma unroll
    for (int k = 0; k < kPer; ++k) {
      alpha[k] = a[k].alpha;
      weight[k] = before[k] * alpha[k];
      opacity += weight[k];
      if (weight[k] != 0.0f) depth += weight[k] * run.middle[k];
    }
    if (out.weights) store(out.weights, ray, j, weight);
    if (out.trans) store(out.trans, ray, j, before);
    if (out.alphas) store(out.alphas, ray, j, alpha);
    channels.add(chunk * G::kChunk, weight, rows);
    if (early_stop_eps > 0.0f && !__any_sync(kFullWarp, (chunk + 1) * G::kChunk < ray.lead + used)) {
      ++chunk;
      break;
    }
  }

  opacity = fminf(sum<G::kLanes>(opacity), 1.0f);
  depth = sum<G::kLanes>(depth);
  channels.finish(opacity, out.channels);
  if (ray.exists && ray.lane == 0) {
    out.opacity[ray.index] = opacity;
    out.depth[ray.index] = depth;
    out.n_samples[ray.index] = used;
  }
  // Samples that the loop has not reached, and the tail.
  for (float* each : {out.weights, out.trans, out.alphas}) {
    if (!each) continue;
    const int begin = max(chunk * G::kChunk, ray.lead), end = ray.lead + ray.count;
    for (int j = begin + ray.lane; j < end; j += G::kLanes) each[int64_t(ray.base) + j] = 0.0f;
    zero_tail(each, s.begin(s.n_rays), s.n);
  }
}

// The gradients of samples that were not composited, and the tail: 0. count: of the ray's samples, composited or not.
template <class G>
__device__ __forceinline__ void zero_rest(const Samples& s, const Ray<G>& ray, int count, const Gradients& grad) {
  const int64_t tail = s.begin(s.n_rays), begin = int64_t(ray.base) + ray.lead;
  for (int j = ray.count + ray.lane; j < count; j += G::kLanes) grad.densities[begin + j] = 0.0f;
  zero_tail(grad.densities, tail, s.n);
  if (grad.channels) {
    const int64_t end = (begin + count) * s.n_channels;
    for (int64_t f = (begin + ray.count) * s.n_channels + ray.lane; f < end; f += G::kLanes) grad.channels[f] = 0.0f;
    zero_tail(grad.channels, tail * s.n_channels, s.n * s.n_channels);
  }
}

// What each of a lane's samples does to the light, and the derivative; g, u, v: cotangents of its weight, T and alpha.
template <class G>
__device__ __forceinline__ void light_all(
    const Samples& s, const Run<G>& run, const Absorption (&a)[G::kPer], const float (&before)[G::kPer],
    const float (&g)[G::kPer], const float (&u)[G::kPer], const float (&v)[G::kPer], Lit (&lit)[G::kPer]) {
  if (s.alphas_given) {
#pragma unroll
    for (int k = 0; k < G::kPer; ++k) lit[k] = light(true, run.density[k], run.delta[k], a[k], before[k], g[k], u[k], v[k]);
  } else {
#pragma unroll
    for (int k = 0; k < G::kPer; ++k)
      lit[k] = light(false, run.density[k], run.delta[k], a[k], before[k], g[k], u[k], v[k]);
  }
}

// The gradients of a chunk's densities; `behind` is lambda behind the chunk, then in front of it.
template <class G>
__device__ __forceinline__ void store_densities(
    const Gradients& grad, const Ray<G>& ray, int chunk, const Lit (&lit)[G::kPer], float& behind) {
  float lambda = lambda_behind<G>(lit, ray.lane, behind);
  float gradient[G::kPer];
#pragma unroll
  for (int k = G::kPer - 1; k >= 0; --k) {
    gradient[k] = lit[k].gradient(lambda);
    lambda = lit[k].pass(lambda);
  }
  store(grad.densities, ray, ray.first(chunk), gradient);
}

// kGiven: are there cotangents of values per sample? Long, because its passes share what a lane keeps of its chunks: in
// registers, which run out where the compiler orders them otherwise.
template <class G, class Channels, bool kGiven>
__global__ void __launch_bounds__(kBlock, Channels::kBlocks - kGiven) backward_kernel(
    const Samples s, const int32_t* __restrict__ n_samples, const Cotangents cotangents, const Gradients grad) {
  constexpr int kPer = G::kPer, kKept = Channels::kKept;
  __shared__ float4 staged[(Channels::kStaged + 3) / 4];
  Ray<G> ray(s);
  const int count = ray.count;
  ray.limit(ray.exists ? min(max(n_samples[ray.index], 0), count) : 0);
  const int n_chunks = ray.chunks();
  const int streamed = max(n_chunks - kKept, 0);  // those before the last kKept are read on both ways
  Channels channels(s, ray);

  // Down the ray: the transmittance in front of each streamed sample, parked where its gradient will be.
  float transmittance = 1.0f;
  for (int chunk = 0; chunk < streamed; ++chunk) {
    Run<G> run;
    Absorption a[kPer];
    float before[kPer];
    run.load(s, ray, ray.first(chunk));
    run.absorb(s, ray, ray.first(chunk), a);
    transmittances<G>(a, ray.lane, transmittance, before);
    store(grad.densities, ray, ray.first(chunk), before);
  }
  // All of the kept samples' loads are in flight at once.
  Run<G> runs[kKept];
  typename Channels::Rows rows[kKept];
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    if (streamed + k >= n_chunks) continue;
    runs[k].load(s, ray, ray.first(streamed + k));
    if (cotangents.channels) channels.load(ray.first(streamed + k), rows[k]);
  }

  channels.begin_backward(cotangents.channels);
  float of_opacity = ray.exists && cotangents.opacity ? cotangents.opacity[ray.index] : 0.0f;
  const float of_depth = ray.exists && cotangents.depth ? cotangents.depth[ray.index] : 0.0f;
  if (ray.exists && s.background && cotangents.channels)
#pragma unroll
    for (int c = 0; c < 3; ++c) of_opacity -= cotangents.channels[ray.index * s.n_channels + c] * s.behind(ray.index)[c];

  // Writes the gradients of a chunk's channels.
  const auto weigh = [&](int chunk, const Run<G>& run, const typename Channels::Rows& row, const Absorption(&a)[kPer],
                         const float (&before)[kPer], Lit(&lit)[kPer]) {
    const int j = ray.first(chunk);
    float g[kPer], u[kPer] = {}, v[kPer] = {}, weight[kPer];
#pragma unroll
    for (int k = 0; k < kPer; ++k) {
      g[k] = of_opacity + of_depth * run.middle[k];
      weight[k] = before[k] * a[k].alpha;
    }
    if constexpr (kGiven) {
      add_given(cotangents.weights, s, ray, j, g);
      add_given(cotangents.trans, s, ray, j, u);
      add_given(cotangents.alphas, s, ray, j, v);
    }
    if (cotangents.channels) channels.dot(chunk * G::kChunk, row, g);
    if (grad.channels) channels.store_gradient(grad.channels, chunk * G::kChunk, weight, &staged[0].x);
    light_all(s, run, a, before, g, u, v, lit);
  };
  Lit kept[kKept][kPer];
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    if (streamed + k >= n_chunks) continue;
    Absorption a[kPer];
    float before[kPer];
    runs[k].absorb(s, ray, ray.first(streamed + k), a);
    transmittances<G>(a, ray.lane, transmittance, before);
    weigh(streamed + k, runs[k], rows[k], a, before, kept[k]);
  }

  // And back.
  float behind = 0.0f;  // lambda behind the chunk
  const auto finish = [&](int chunk, const Lit(&lit)[kPer]) { store_densities(grad, ray, chunk, lit, behind); };
#pragma unroll
  for (int k = kKept - 1; k >= 0; --k)
    if (streamed + k < n_chunks) finish(streamed + k, kept[k]);
  for (int chunk = streamed - 1; chunk >= 0; --chunk) {
    const int j = ray.first(chunk);
    Run<G> run;
    typename Channels::Rows row;
    Absorption a[kPer];
    float before[kPer];
    Lit lit[kPer];
    run.load(s, ray, j);
    if (cotangents.channels) channels.load(j, row);
#pragma unroll
    for (int k = 0; k < kPer; ++k) before[k] = ray.holds(j + k) ? grad.densities[int64_t(ray.base) + j + k] : 0.0f;
    run.absorb(s, ray, j, a);
    weigh(chunk, run, row, a, before, lit);
    finish(chunk, lit);
  }

  zero_rest(s, ray, count, grad);
}

bool aligned(std::initializer_list<const float*> all) {
  for (const float* each : all)
    if (reinterpret_cast<uintptr_t>(each) % 16 != 0) return false;
  return true;
}

template <int kLanes, int kPer, int kCount>
struct NarrowRays {
  using G = Group<kLanes, kPer>;
  using Channels = Narrow<G, kCount>;
};
template <int kLanes>
struct WideRays {
  using G = Group<kLanes, 1>;
  using Channels = Wide<G>;
};

// Calls body with one of the above: as few lanes to a ray of mean length as leave it one or two chunks. Memory is idle while
// instructions are issued, so what counts is that few of them find no sample to work on.
template <typename Body>
void dispatch(const Samples& s, bool by_four, const Body& body) {
  const int64_t mean = s.n / (s.n_rays > 0 ? s.n_rays : 1);
  const auto four = [&](auto count) {
    if (mean <= 12) body(NarrowRays<4, 4, count()>());
    else if (mean <= 100) body(NarrowRays<16, 4, count()>());
    else body(NarrowRays<32, 4, count()>());
  };
  using std::integral_constant;
  if (s.n_channels > kNarrow) {
    if (mean <= 16) body(WideRays<8>());
    else body(WideRays<32>());
  } else if (by_four && s.n_channels == 0) {
    four(integral_constant<int, 0>());
  } else if (by_four && s.n_channels == 3) {
    four(integral_constant<int, 3>());
  } else {
    if (mean <= 20) body(NarrowRays<8, 1, -1>());
    else body(NarrowRays<32, 1, -1>());
  }
}

// At least a few blocks: they also clear the tail.
unsigned int grid(const Samples& s, int lanes) {
  const unsigned int needed = blocks(s.n_rays * lanes, kBlock);
  return needed < 64 ? 64 : needed;
}

void forward(const Tensor& like, const Samples& s, float early_stop_eps, const Composited& out) {
  const Launch launch(like);
  if (s.n_rays == 0 && (s.n == 0 || !(out.weights || out.trans || out.alphas))) return;
  dispatch(s, aligned({s.densities, s.t_starts, s.t_ends, s.channels}), [&](auto rays) {
    using R = decltype(rays);
    forward_kernel<typename R::G, typename R::Channels>
        <<<grid(s, R::G::kLanes), kBlock, 0, launch.stream>>>(s, early_stop_eps, out);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void backward(
    const Tensor& like, const Samples& s, const int32_t* n_samples, const Cotangents& cotangents, const Gradients& grad) {
  const Launch launch(like);
  if (s.n == 0) return;
  const bool by_four = aligned(
      {s.densities, s.t_starts, s.t_ends, s.channels, cotangents.weights, cotangents.trans, cotangents.alphas,
       grad.densities, grad.channels});
  const bool given = cotangents.weights || cotangents.trans || cotangents.alphas;
  dispatch(s, by_four, [&](auto rays) {
    using R = decltype(rays);
    const auto kernel = given ? backward_kernel<typename R::G, typename R::Channels, true>
                              : backward_kernel<typename R::G, typename R::Channels, false>;
    kernel<<<grid(s, R::G::kLanes), kBlock, 0, launch.stream>>>(s, n_samples, cotangents, grad);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("composite", TORCH_BOX(&composite<forward>));
  m.impl("composite_backward", TORCH_BOX(&composite_backward<backward>));
}

}  // namespace lightning_nerf::composite
