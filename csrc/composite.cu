// A group of kLanes neighbouring lanes owns a ray and takes it kLanes samples ("a chunk") at a time, one sample per lane.
// Channels come in two widths. Narrow (<= 4): each lane reads its own sample's. Wide (<= 32): a row of channels spans the
// lanes, and the rows of a chunk follow one another, so that memory is still read in one piece.
// The groups of a warp walk the same number of chunks, so that every shuffle has the whole warp; a lane past its ray's end
// holds a void sample.
#include "composite.h"
#include "cuda.cuh"

namespace lightning_nerf {
namespace {

constexpr int kBlock = 128;
constexpr int kNarrow = 4;

// Channels that one lane holds: all of its sample's, or its share of a row.
template <int kLanes, bool kWide>
constexpr int kHeld = kWide ? kMaxChannels / kLanes : kNarrow;

struct Interval {
  float density, t_start, t_end;

  __device__ float delta() const { return t_end - t_start; }
  __device__ float middle() const { return 0.5f * (t_start + t_end); }
};

// Sample j of the ray that begins at entry `begin`; a void one outside [0, count).
__device__ __forceinline__ Interval load(const Samples& s, int begin, int j, int count) {
  if (j < 0 || j >= count) return {0.0f, 0.0f, 0.0f};
  const int i = begin + j;
  return {__ldg(s.densities + i), __ldg(s.t_starts + i), __ldg(s.t_ends + i)};
}

struct Narrow {
  float channel[kNarrow];
};

__device__ __forceinline__ Narrow load_narrow(const Samples& s, int begin, int j, int count) {
  Narrow row = {};
  if (j < 0 || j >= count) return row;
  const float* channels = s.channels + int64_t(begin + j) * s.n_channels;
#pragma unroll
  for (int c = 0; c < kNarrow; ++c)
    if (c < s.n_channels) row.channel[c] = __ldg(channels + c);
  return row;
}

template <int kLanes>
__device__ __forceinline__ float product_up_to(float value, int lane) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const float other = __shfl_up_sync(kFullWarp, value, step, kLanes);
    if (lane >= step) value *= other;
  }
  return value;
}

template <int kLanes>
__device__ __forceinline__ float sum_from(float value, int lane) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const float other = __shfl_down_sync(kFullWarp, value, step, kLanes);
    if (lane + step < kLanes) value += other;
  }
  return value;
}

template <int kLanes>
__device__ __forceinline__ float sum(float value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kFullWarp, value, step, kLanes);
  return value;
}

// Lane l gets the sum over lanes of value[l] in value[0]: lanes swap halves of what they hold until one entry is left.
template <int kLanes, int kHalf = kLanes / 2>
__device__ __forceinline__ void transposed_sum(float (&value)[kLanes], int lane) {
  const bool upper = lane & kHalf;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float sent = upper ? value[i] : value[i + kHalf];
    value[i] = (upper ? value[i + kHalf] : value[i]) + __shfl_xor_sync(kFullWarp, sent, kHalf, kLanes);
  }
  if constexpr (kHalf > 1) transposed_sum<kLanes, kHalf / 2>(value, lane);
}

// Transmittance in front of this lane's sample; `carried` is the transmittance in front of the chunk, then behind it.
template <int kLanes>
__device__ __forceinline__ float transmittance_before(float transmitted, int lane, float& carried) {
  const float product = product_up_to<kLanes>(transmitted, lane);
  const float before = __shfl_up_sync(kFullWarp, product, 1, kLanes);
  const float result = lane == 0 ? carried : carried * before;
  carried *= __shfl_sync(kFullWarp, product, kLanes - 1, kLanes);
  return result;
}

// Entries [from, to), by all threads of the grid.
__device__ __forceinline__ void zero_tail(float* data, int64_t from, int64_t to) {
  const int64_t stride = gridDim.x * int64_t(kBlock);
  for (int64_t i = from + blockIdx.x * int64_t(kBlock) + threadIdx.x; i < to; i += stride) data[i] = 0.0f;
}

template <int kLanes, bool kWide>
__global__ void __launch_bounds__(kBlock) forward_kernel(const Samples s, const float early_stop_eps, const Composited out) {
  constexpr int kPer = kHeld<kLanes, kWide>;
  const int64_t ray = (blockIdx.x * int64_t(kBlock) + threadIdx.x) / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int begin = ray < s.n_rays ? int(s.begin(ray)) : 0;
  const int count = ray < s.n_rays ? int(s.begin(ray + 1)) - begin : 0;
  const int n_chunks = __reduce_max_sync(kFullWarp, (count + kLanes - 1) / kLanes);

  float sums[kPer] = {};
  float opacity = 0.0f, depth = 0.0f, transmittance = 1.0f;
  int used = count;
  Interval next = load(s, begin, lane, count);
  Narrow next_row = {};
  if constexpr (!kWide) next_row = load_narrow(s, begin, lane, count);
  int chunk = 0;
  for (; chunk < n_chunks; ++chunk) {
    const int first = chunk * kLanes, j = first + lane;
    const Interval sample = next;
    const Narrow row = next_row;
    next = load(s, begin, j + kLanes, count);  // in flight while this chunk is worked on
    if constexpr (!kWide) next_row = load_narrow(s, begin, j + kLanes, count);

    const Absorption a = absorb(sample.density, sample.delta());
    const float before = transmittance_before<kLanes>(a.transmitted, lane, transmittance);
    if (early_stop_eps > 0.0f) {
      // The first lane that sees too little ends the ray, whatever rounding lets the lanes behind it see.
      const unsigned warp_stops = __ballot_sync(kFullWarp, j < used && before < early_stop_eps);
      const unsigned stops = warp_stops << (32 - kLanes - (threadIdx.x % 32 - lane)) >> (32 - kLanes);
      if (stops) used = first + __ffs(stops) - 1;
    }
    const float weight = j < used ? before * a.alpha : 0.0f;
    opacity += weight;
    depth += weight * sample.middle();
    if (out.weights && j < count) out.weights[begin + j] = weight;
    if constexpr (kWide) {
      const float* rows = s.channels + (int64_t(begin) + first) * s.n_channels + lane;
      constexpr int kBatch = kLanes / 2;  // rows in flight
#pragma unroll
      for (int k = 0; k < kLanes; k += kBatch) {
        float w[kBatch], value[kBatch][kPer] = {};
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          w[b] = __shfl_sync(kFullWarp, weight, k + b, kLanes);
#pragma unroll
          for (int q = 0; q < kPer; ++q)
            if (w[b] != 0.0f && lane + q * kLanes < s.n_channels)
              value[b][q] = __ldg(rows + (k + b) * s.n_channels + q * kLanes);
        }
#pragma unroll
        for (int b = 0; b < kBatch; ++b)
#pragma unroll
          for (int q = 0; q < kPer; ++q) sums[q] += w[b] * value[b][q];
      }
    } else if (weight != 0.0f) {  // a void sample's channels may hold anything
#pragma unroll
      for (int c = 0; c < kNarrow; ++c) sums[c] += weight * row.channel[c];
    }
    if (early_stop_eps > 0.0f && !__any_sync(kFullWarp, first + kLanes < used)) {
      ++chunk;
      break;
    }
  }

  opacity = fminf(sum<kLanes>(opacity), 1.0f);
  depth = sum<kLanes>(depth);
  if constexpr (!kWide)
#pragma unroll
    for (int c = 0; c < kNarrow; ++c)
      if (c < s.n_channels) sums[c] = sum<kLanes>(sums[c]);
  if (ray < s.n_rays) {
    if (s.background) {
      if constexpr (kWide) {
        if (lane < 3) sums[0] += (1.0f - opacity) * s.behind(ray)[lane];
      } else {
#pragma unroll
        for (int c = 0; c < 3; ++c) sums[c] += (1.0f - opacity) * s.behind(ray)[c];
      }
    }
    float* channels = out.channels + ray * s.n_channels;
    if constexpr (kWide) {
#pragma unroll
      for (int q = 0; q < kPer; ++q)
        if (lane + q * kLanes < s.n_channels) channels[lane + q * kLanes] = sums[q];
    } else if (lane == 0) {
#pragma unroll
      for (int c = 0; c < kNarrow; ++c)
        if (c < s.n_channels) channels[c] = sums[c];
    }
    if (lane == 0) {
      out.opacity[ray] = opacity;
      out.depth[ray] = depth;
      out.n_samples[ray] = used;
    }
  }
  if (out.weights) {
    for (int j = chunk * kLanes + lane; j < count; j += kLanes) out.weights[begin + j] = 0.0f;
    zero_tail(out.weights, s.begin(s.n_rays), s.n);
  }
}

// What the way back needs of a sample.
struct Lit {
  float delta;   // 0: without gradient
  float own;     // g times the transmittance behind the sample, where g = d loss / d weight
  float weight;  // times g
};

// Chunks whose samples a group keeps in registers: it reads rays that are no longer than this once.
template <bool kWide>
constexpr int kKept = kWide ? 4 : 6;

template <int kLanes, bool kWide>
__global__ void __launch_bounds__(kBlock, kWide ? 4 : 6)  // as many blocks as fit without spilling
    backward_kernel(const Samples s, const int32_t* __restrict__ n_samples, const Cotangents cotangents,
                    const Gradients grad) {
  constexpr int kPer = kHeld<kLanes, kWide>, kKeep = kKept<kWide>;
  const int64_t ray = (blockIdx.x * int64_t(kBlock) + threadIdx.x) / kLanes;
  const int lane = threadIdx.x % kLanes;
  const bool active = ray < s.n_rays;
  const int begin = active ? int(s.begin(ray)) : 0;
  const int count = active ? int(s.begin(ray + 1)) - begin : 0;
  const int used = active ? min(n_samples[ray], count) : 0;
  const int chunks = __reduce_max_sync(kFullWarp, (used + kLanes - 1) / kLanes);
  const int streamed = max(chunks - kKeep, 0);  // those before the last kKeep are read on both ways
  const int64_t n_channels = s.n_channels;

  // Down the ray: the transmittance in front of each streamed sample, parked where its gradient will be.
  float carried = 1.0f;
  Interval next = load(s, begin, lane, used);
  for (int chunk = 0; chunk < streamed; ++chunk) {
    const int j = chunk * kLanes + lane;
    const Interval sample = next;
    next = load(s, begin, j + kLanes, used);
    const float before = transmittance_before<kLanes>(absorb(sample.density, sample.delta()).transmitted, lane, carried);
    if (j < used) grad.densities[begin + j] = before;
  }
  // All of the kept samples' loads are in flight at once.
  Interval samples[kKeep];
  Narrow rows[kKeep] = {};
#pragma unroll
  for (int k = 0; k < kKeep; ++k) {
    const int j = (streamed + k) * kLanes + lane;
    samples[k] = k == 0 ? next : load(s, begin, j, used);
    if constexpr (!kWide)
      if (cotangents.channels) rows[k] = load_narrow(s, begin, j, used);
  }

  float of_opacity = active && cotangents.opacity ? cotangents.opacity[ray] : 0.0f;
  const float of_depth = active && cotangents.depth ? cotangents.depth[ray] : 0.0f;
  const bool has_channels = active && cotangents.channels && n_channels > 0;
  if (has_channels && s.background)
#pragma unroll
    for (int c = 0; c < 3; ++c) of_opacity -= cotangents.channels[ray * n_channels + c] * s.behind(ray)[c];
  float of_channels[kPer] = {};  // of those that this lane holds
#pragma unroll
  for (int q = 0; q < kPer; ++q) {
    const int c = kWide ? lane + q * kLanes : q;
    if (has_channels && c < n_channels) of_channels[q] = cotangents.channels[ray * n_channels + c];
  }
  // Narrow rows are written as one run of floats: float q * kLanes + lane of a chunk belongs to this sample and channel.
  int run_sample[kNarrow] = {};
  float run_cotangent[kNarrow] = {};
  if constexpr (!kWide) {
#pragma unroll
    for (int q = 0; q < kNarrow; ++q) {
      if (q >= s.n_channels) continue;
      const unsigned f = q * kLanes + lane;
      run_sample[q] = f / unsigned(s.n_channels);
      if (has_channels) run_cotangent[q] = cotangents.channels[ray * n_channels + f % unsigned(s.n_channels)];
    }
  }

  // Writes the gradients of a chunk's channels; the chunk begins at the ray's sample `first`.
  const auto light = [&](int first, const Interval& sample, const Narrow& row, const Absorption& a, float before) -> Lit {
    const int j = first + lane;
    const float weight = before * a.alpha;
    float g = of_opacity + of_depth * sample.middle();
    if (cotangents.weights && j < used) g += __ldg(cotangents.weights + begin + j);
    if (cotangents.channels) {
      if constexpr (kWide) {
        const float* held = s.channels + (int64_t(begin) + first) * n_channels + lane;
        float dots[kLanes];
#pragma unroll
        for (int k = 0; k < kLanes; ++k) {
          dots[k] = 0.0f;
#pragma unroll
          for (int q = 0; q < kPer; ++q)
            if (first + k < used && lane + q * kLanes < s.n_channels)
              dots[k] += of_channels[q] * __ldg(held + k * s.n_channels + q * kLanes);
        }
        transposed_sum<kLanes>(dots, lane);
        g += dots[0];
      } else {
#pragma unroll
        for (int c = 0; c < kNarrow; ++c) g += of_channels[c] * row.channel[c];
      }
    }
    if (grad.channels) {
      float* run = grad.channels + (int64_t(begin) + first) * n_channels + lane;
      if constexpr (kWide) {
#pragma unroll
        for (int k = 0; k < kLanes; ++k) {
          const float w = __shfl_sync(kFullWarp, weight, k, kLanes);
#pragma unroll
          for (int q = 0; q < kPer; ++q)
            if (first + k < used && lane + q * kLanes < s.n_channels)
              run[k * s.n_channels + q * kLanes] = w * of_channels[q];
        }
      } else {
#pragma unroll
        for (int q = 0; q < kNarrow; ++q) {
          if (q >= s.n_channels) continue;
          const float w = __shfl_sync(kFullWarp, weight, run_sample[q], kLanes);
          if (first + run_sample[q] < used) run[q * kLanes] = w * run_cotangent[q];
        }
      }
    }
    const float delta = sample.delta();
    if (is_void(sample.density, delta)) return {0.0f, 0.0f, 0.0f};  // also past the ray's end
    return {delta, before * a.transmitted * g, g * weight};
  };
  Lit lit[kKeep];
#pragma unroll
  for (int k = 0; k < kKeep; ++k) {
    if (streamed + k >= chunks) continue;
    const Absorption a = absorb(samples[k].density, samples[k].delta());
    const float before = transmittance_before<kLanes>(a.transmitted, lane, carried);
    lit[k] = light((streamed + k) * kLanes, samples[k], rows[k], a, before);
  }

  // And back.
  float after = 0.0f;  // sum of g w over the chunks behind
  const auto finish = [&](int j, const Lit& sample) {
    const float from_here = sum_from<kLanes>(sample.weight, lane);
    const float behind = __shfl_down_sync(kFullWarp, from_here, 1, kLanes);
    const float later = lane == kLanes - 1 ? after : after + behind;
    after += __shfl_sync(kFullWarp, from_here, 0, kLanes);
    if (j < used) grad.densities[begin + j] = sample.delta > 0.0f ? density_gradient(sample.delta, sample.own, later) : 0.0f;
  };
#pragma unroll
  for (int k = kKeep - 1; k >= 0; --k)
    if (streamed + k < chunks) finish((streamed + k) * kLanes + lane, lit[k]);

  const auto parked = [&](int j) { return j >= 0 && j < used ? grad.densities[begin + j] : 0.0f; };
  Narrow row = {}, next_row = {};
  float next_before = 0.0f;
  if (streamed > 0) {
    const int j = (streamed - 1) * kLanes + lane;
    next = load(s, begin, j, used);
    next_before = parked(j);
    if constexpr (!kWide)
      if (cotangents.channels) next_row = load_narrow(s, begin, j, used);
  }
  for (int chunk = streamed - 1; chunk >= 0; --chunk) {
    const int first = chunk * kLanes, j = first + lane;
    const Interval sample = next;
    const float before = next_before;
    row = next_row;
    next = load(s, begin, j - kLanes, used);  // in flight while this chunk is worked on
    next_before = parked(j - kLanes);
    if constexpr (!kWide)
      if (cotangents.channels) next_row = load_narrow(s, begin, j - kLanes, used);
    finish(j, light(first, sample, row, absorb(sample.density, sample.delta()), before));
  }

  // Samples that were not composited, and the tail.
  const int64_t tail = s.begin(s.n_rays);
  for (int j = used + lane; j < count; j += kLanes) grad.densities[begin + j] = 0.0f;
  zero_tail(grad.densities, tail, s.n);
  if (grad.channels) {
    const int64_t end = (int64_t(begin) + count) * n_channels;
    for (int64_t f = (int64_t(begin) + used) * n_channels + lane; f < end; f += kLanes) grad.channels[f] = 0.0f;
    zero_tail(grad.channels, tail * n_channels, s.n * n_channels);
  }
}

// As many lanes as leave few idle in a ray of mean length, yet no more chunks one after the other than about five.
int lanes_per_ray(const Samples& s) {
  const int64_t mean = s.n / (s.n_rays > 0 ? s.n_rays : 1);
  if (s.n_channels > kNarrow) return mean <= 16 ? 8 : 32;
  return mean <= 6 ? 4 : mean <= 20 ? 8 : mean <= 96 ? 16 : 32;
}

// Calls body(lanes, wide) with compile-time constants.
template <typename Body>
void dispatch(const Samples& s, const Body& body) {
  const int lanes = lanes_per_ray(s);
  using std::integral_constant;
  if (s.n_channels > kNarrow) {
    if (lanes == 8) body(integral_constant<int, 8>(), std::true_type());
    else body(integral_constant<int, 32>(), std::true_type());
  } else {
    if (lanes == 4) body(integral_constant<int, 4>(), std::false_type());
    else if (lanes == 8) body(integral_constant<int, 8>(), std::false_type());
    else if (lanes == 16) body(integral_constant<int, 16>(), std::false_type());
    else body(integral_constant<int, 32>(), std::false_type());
  }
}

// At least a few blocks: they also clear the tail.
unsigned int grid(const Samples& s, int lanes) {
  const unsigned int needed = blocks(s.n_rays * lanes, kBlock);
  return needed < 64 ? 64 : needed;
}

void forward(const Tensor& like, const Samples& s, float early_stop_eps, const Composited& out) {
  const Launch launch(like);
  if (s.n_rays == 0 && (s.n == 0 || !out.weights)) return;
  dispatch(s, [&](auto lanes, auto wide) {
    forward_kernel<lanes(), wide()><<<grid(s, lanes), kBlock, 0, launch.stream>>>(s, early_stop_eps, out);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void backward(const Tensor& like, const Samples& s, const int32_t* n_samples, const Cotangents& cotangents,
              const Gradients& grad) {
  const Launch launch(like);
  if (s.n == 0) return;
  dispatch(s, [&](auto lanes, auto wide) {
    backward_kernel<lanes(), wide()><<<grid(s, lanes), kBlock, 0, launch.stream>>>(s, n_samples, cotangents, grad);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace lightning_nerf

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("composite", TORCH_BOX(&lightning_nerf::composite<lightning_nerf::forward>));
  m.impl("composite_backward", TORCH_BOX(&lightning_nerf::composite_backward<lightning_nerf::backward>));
}
