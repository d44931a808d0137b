// The field along rays that end early. A warp holds four or eight rays and evaluates the next eight or four samples of each.
#include "contract.h"
#include "instant_ngp.h"
#include "ray_queue.cuh"

namespace lightning_nerf::instant_ngp {
namespace {

constexpr int kRayWarps = 4;
constexpr int kRayBlock = 32 * kRayWarps;
// Lanes of a ray at first. Fewer leave less behind the surface to be evaluated in vain; a color wants eight, one for each
// pair of harmonics.
constexpr int kDensityWidth = 4, kRenderWidth = 8;
constexpr int kRenderSlots = 32 / kRenderWidth;

// A lane's own sample of the chunk.
struct Chunk {
  int32_t index;  // of the sample
  bool valid, inside;
  float t_start, t_end;
  float x[3];  // in [0, 1]

  __device__ __forceinline__ Chunk(const RaySamples& s, const Slot& slot, int width) {
    index = slot.next + (threadIdx.x & (width - 1));
    valid = index < slot.end;
    t_start = valid ? s.t_starts[index] : 0.0f;
    t_end = valid ? s.t_ends[index] : 0.0f;
    const float middle = (t_start + t_end) * 0.5f;
#pragma unroll
    for (int a = 0; a < 3; ++a) x[a] = valid ? fmaf(middle, slot.direction[a], slot.origin[a]) : 0.0f;
    if (s.contraction != kNoContraction) contract_unit(x, s.contraction);
    inside = inside_box(x);
#pragma unroll
    for (int a = 0; a < 3; ++a) x[a] = clamp_to_unit(x[a]);
  }

  // Negative or NaN: none.
  __device__ __forceinline__ float optical_depth(float density) const {
    const float depth = density * (t_end - t_start);
    return depth > 0.0f ? depth : 0.0f;
  }
};

// Rows of tile `tile` of the warp's 32 samples, encoded. Lane i holds sample i; row r of the tile is sample 16 tile + r.
template <int F, typename T>
__device__ __forceinline__ void encode_chunk(
    Operand<kEncoded>& encoded, const Level* levels, const __half* table, const Chunk& chunk, unsigned valid_lanes,
    int tile) {
  const int g = (threadIdx.x & 31) >> 2;
  float x[2][3];
  bool valid[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int source = 16 * tile + g + 8 * r;
    valid[r] = valid_lanes >> source & 1u;
#pragma unroll
    for (int a = 0; a < 3; ++a) x[r][a] = __shfl_sync(kFullWarp, chunk.x[a], source);
  }
  encode<F, T>(encoded, levels, table, x, valid);
}

// Value of row i of both tiles, given by the lanes that hold column `column` of `low` (rows g) and `high` (rows g + 8).
__device__ __forceinline__ float own_row(const float (&low)[2], const float (&high)[2], int thread) {
  const int lane = threadIdx.x & 31, source = 4 * (lane & 7) + thread;
  const float a = __shfl_sync(kFullWarp, low[0], source), b = __shfl_sync(kFullWarp, high[0], source);
  const float c = __shfl_sync(kFullWarp, low[1], source), d = __shfl_sync(kFullWarp, high[1], source);
  return lane < 16 ? (lane < 8 ? a : b) : (lane < 24 ? c : d);
}

// Sum over a slot's lanes.
__device__ __forceinline__ float slot_sum(float value, int width) {
  for (int step = 1; step < width; step *= 2) value += __shfl_xor_sync(kFullWarp, value, step);
  return value;
}

// Sum over a slot's lanes below this one.
__device__ __forceinline__ float slot_sum_below(float value, int width) {
  const int i = threadIdx.x & (width - 1);
  float sum = value;
  for (int step = 1; step < width; step *= 2) {
    const float left = __shfl_up_sync(kFullWarp, sum, step);
    if (i >= step) sum += left;
  }
  const float below = __shfl_up_sync(kFullWarp, sum, 1);
  return i == 0 ? 0.0f : below;
}

template <typename T>
struct DensityShared {
  SharedDensityNet<T> density;
  Level levels[kMaxLevels];
};

template <int F, typename T>
__global__ void __launch_bounds__(kRayBlock, 6) ray_densities_kernel(
    const RaySamples s, const Encoding encoding, const FieldWeights weights, float density_bias,
    float* __restrict__ densities,  // [N], zero before
    T* __restrict__ features) {     // [N, 32] or null
  __shared__ __align__(16) DensityShared<T> shared;
  shared.density.template load<F>(weights);
  read_levels<3>(encoding.levels, 0, encoding.n_levels, encoding.n_rows, shared.levels);  // ends with a barrier
  const int g = (threadIdx.x & 31) >> 2;
  const auto skip = [](int64_t) {};
  const auto nothing = [](const Slot&) {};
  const auto leave = [] {};
  const auto arrive = [](const Slot&, int) {};
  Queue<kDensityWidth> queue{s};
  Slot slot;
  for (;;) {
    queue.refill(slot, skip, nothing, nothing, leave, arrive);
    const Chunk chunk(s, slot, queue.width);
    const unsigned valid_lanes = __ballot_sync(kFullWarp, chunk.valid);
    if (valid_lanes == 0u) break;
    float low[2] = {}, high[2] = {};
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      if ((valid_lanes >> (16 * tile) & 0xFFFFu) == 0u) continue;
      Operand<kEncoded> encoded;
      encode_chunk<F, T>(encoded, shared.levels, encoding.table, chunk, valid_lanes, tile);
      if (features != nullptr) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int source = 16 * tile + g + 8 * r;
          const int64_t index = __shfl_sync(kFullWarp, chunk.index, source);
          if (valid_lanes >> source & 1u) store_encoding<F, T>(features + kEncoded * index, encoded, r);
        }
      }
      Accumulator<kGeometry> shape;
      geometry(shape, shared.density, encoded);
      low[tile] = shape.tile[0][0];
      high[tile] = shape.tile[0][2];
    }
    const float log_density = own_row(low, high, 0) + density_bias;
    const float density = chunk.inside ? __expf(log_density) : 0.0f;
    if (chunk.valid) densities[chunk.index] = density;
    slot.depth += slot_sum(chunk.valid ? chunk.optical_depth(density) : 0.0f, queue.width);
    slot.next = slot.depth > s.largest_depth ? slot.end : slot.next + queue.width;
  }
}

template <typename T>
struct RenderShared {
  SharedDensityNet<T> density;
  SharedColorNet<T> color;
  Level levels[kMaxLevels];
  T harmonics[kRayWarps][kRenderSlots * kHarmonics];
};

struct RenderOutputs {
  float* rgb;          // [R, 3]
  float* opacity;      // [R]
  float* depth;        // [R]
  int32_t* n_samples;  // [R]
};

// This lane's share of its ray's integrals.
struct Light {
  float rgb[3] = {}, opacity = 0.0f, depth = 0.0f;
  int count = 0;
  float in_front = 0.0f;  // optical depth of the composited samples so far; the same on all lanes of a slot

  // Over the lanes of each slot.
  __device__ __forceinline__ void sum(unsigned lanes, int width) {
    for (int step = 1; step < width; step *= 2) {
#pragma unroll
      for (int c = 0; c < 3; ++c) rgb[c] += __shfl_xor_sync(lanes, rgb[c], step);
      opacity += __shfl_xor_sync(lanes, opacity, step);
      depth += __shfl_xor_sync(lanes, depth, step);
      count += __shfl_xor_sync(lanes, count, step);
    }
  }
};

// The color perceptron's input for a tile: its slots' harmonics and the geometry features.
template <typename T>
__device__ __forceinline__ void color_input(
    Operand<kColorInput>& in, const T* harmonics, int width, int tile, const Accumulator<kGeometry>& shape) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int row = 16 * tile + g;
  const uint32_t* upper = reinterpret_cast<const uint32_t*>(harmonics + row / width * kHarmonics);
  const uint32_t* lower = reinterpret_cast<const uint32_t*>(harmonics + (row + 8) / width * kHarmonics);
  in.block[0][0] = upper[t];
  in.block[0][1] = lower[t];
  in.block[0][2] = upper[t + 4];
  in.block[0][3] = lower[t + 4];
  Operand<kGeometry> rounded;
  to_operand<T>(rounded, shape);
#pragma unroll
  for (int k = 0; k < 4; ++k) in.block[1][k] = rounded.block[0][k];
}

// Long, because all of it works on the lane's Light and Slot, which have to stay in registers: what is left in line compiles
// to other code as a function.
template <int F, typename T>
__global__ void __launch_bounds__(kRayBlock, 5) render_kernel(
    const RaySamples s, const Encoding encoding, const FieldWeights weights, float density_bias, float log_eps,
    const float* __restrict__ alpha_thre,  // []
    RenderOutputs out) {
  extern __shared__ __align__(16) char memory[];
  RenderShared<T>& shared = *reinterpret_cast<RenderShared<T>*>(memory);
  shared.density.template load<F>(weights);
  shared.color.load(weights);
  read_levels<3>(encoding.levels, 0, encoding.n_levels, encoding.n_rows, shared.levels);  // ends with a barrier
  const int lane = threadIdx.x & 31;
  T* harmonics = shared.harmonics[threadIdx.x / 32];
  const float least_depth = -log1pf(-*alpha_thre);  // optical depth of the least opacity that counts
  Queue<kRenderWidth> queue{s};
  Light light;

  const auto skip = [&](int64_t ray) {
    for (int c = 0; c < 3; ++c) out.rgb[3 * ray + c] = 0.0f;
    out.opacity[ray] = out.depth[ray] = 0.0f;
    out.n_samples[ray] = 0;
  };
  const auto finish = [&](const Slot& slot) {
    const int width = queue.width, i = lane & (width - 1);
    light.sum(width == 32 ? kFullWarp : ((1u << width) - 1u) << (lane - i), width);
    const int64_t ray = slot.ray;
    if (i < 3) out.rgb[3 * ray + i] = i == 0 ? light.rgb[0] : i == 1 ? light.rgb[1] : light.rgb[2];
    if (i == 3) out.opacity[ray] = fminf(light.opacity, 1.0f);
    if (i == 4) out.depth[ray] = light.depth;
    if (i == 5) out.n_samples[ray] = light.count;
  };
  const auto share_direction = [&](const Slot& slot) {  // one slot's harmonics, by its first eight lanes
    const int i = lane & (queue.width - 1);
    float y[kHarmonics];
    spherical_harmonics::row<4>(s.directions + 3 * int64_t(slot.ray), y);
    uint32_t* own = reinterpret_cast<uint32_t*>(harmonics + lane / queue.width * kHarmonics);
#pragma unroll
    for (int k = 0; k < kHarmonics / 2; ++k)
      if (k == i) own[k] = pack_pair<T>(y[2 * k], y[2 * k + 1]);
  };
  const auto start = [&](const Slot& slot) {
    light = Light();
    share_direction(slot);
  };
  const auto leave = [&] { light.sum(kFullWarp, queue.width); };
  const auto arrive = [&](const Slot& slot, int source) {
    const Light all = light;
    const bool leads = (lane & (queue.width - 1)) == 0;
    light = Light();
    const float in_front = __shfl_sync(kFullWarp, all.in_front, source);
    const float opacity = __shfl_sync(kFullWarp, all.opacity, source), depth = __shfl_sync(kFullWarp, all.depth, source);
    const int count = __shfl_sync(kFullWarp, all.count, source);
    light.in_front = in_front;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const float value = __shfl_sync(kFullWarp, all.rgb[c], source);
      if (leads) light.rgb[c] = value;
    }
    if (leads) light.opacity = opacity, light.depth = depth, light.count = count;
    if (slot.ray >= 0) share_direction(slot);
  };

  Slot slot;
  for (;;) {
    queue.refill(slot, skip, finish, start, leave, arrive);
    const Chunk chunk(s, slot, queue.width);
    const unsigned valid_lanes = __ballot_sync(kFullWarp, chunk.valid);
    if (valid_lanes == 0u) break;
    __syncwarp();
    float low[2] = {}, high[2] = {}, low_color[2][2] = {}, high_color[2][2] = {};
#pragma unroll 1
    for (int tile = 0; tile < 2; ++tile) {
      if ((valid_lanes >> (16 * tile) & 0xFFFFu) == 0u) continue;
      Operand<kEncoded> encoded;
      encode_chunk<F, T>(encoded, shared.levels, encoding.table, chunk, valid_lanes, tile);
      Accumulator<kGeometry> shape;
      geometry(shape, shared.density, encoded);
      Operand<kColorInput> in;
      color_input(in, harmonics, queue.width, tile, shape);
      Accumulator<16> logits;
      color(logits, shared.color, in);
      if (tile == 0) {
        low[0] = shape.tile[0][0];
        high[0] = shape.tile[0][2];
        for (int c = 0; c < 2; ++c) low_color[c][0] = logits.tile[0][c], high_color[c][0] = logits.tile[0][2 + c];
      } else {
        low[1] = shape.tile[0][0];
        high[1] = shape.tile[0][2];
        for (int c = 0; c < 2; ++c) low_color[c][1] = logits.tile[0][c], high_color[c][1] = logits.tile[0][2 + c];
      }
    }
    __syncwarp();
    const float log_density = own_row(low, high, 0) + density_bias;
    const float rgb[3] = {
        sigmoid(own_row(low_color[0], high_color[0], 0)), sigmoid(own_row(low_color[1], high_color[1], 0)),
        sigmoid(own_row(low_color[0], high_color[0], 1))};
    const float depth = chunk.valid && chunk.inside ? chunk.optical_depth(__expf(log_density)) : 0.0f;
    const float in_front = slot.depth + slot_sum_below(depth, queue.width);  // all lanes take part in a sum
    const bool seen = chunk.valid && in_front <= -log_eps && depth >= least_depth;
    const float composited = seen ? depth : 0.0f;
    const float transmittance = __expf(-(light.in_front + slot_sum_below(composited, queue.width)));
    const float weight = seen ? transmittance * -expm1f(-composited) : 0.0f;
    if (weight > 0.0f) {  // also leaves out what a NaN would spread
#pragma unroll
      for (int c = 0; c < 3; ++c) light.rgb[c] += weight * rgb[c];
      light.opacity += weight;
      light.depth += weight * 0.5f * (chunk.t_start + chunk.t_end);
    }
    light.count += int(seen);
    light.in_front += slot_sum(composited, queue.width);
    slot.depth += slot_sum(depth, queue.width);
    slot.next = slot.depth > s.largest_depth ? slot.end : slot.next + queue.width;
  }
}

// Behind this optical depth less than early_stop_eps of the light is left. A margin of a thousandth: what the estimator's
// own, more exact sum still takes for visible must have been evaluated.
float largest_depth(double early_stop_eps) {
  return early_stop_eps > 0.0 ? float(-1.001 * std::log(early_stop_eps) + 1e-3) : INFINITY;
}

RaySamples ray_samples(
    const Tensor& origins, const Tensor& directions, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets,
    const Tensor& to_unit, int64_t contraction, double early_stop_eps, Tensor& taken) {
  check_float(origins, "origins");
  check_float(directions, "directions");
  check_float(t_starts, "t_starts");
  check_float(t_ends, "t_ends");
  check_int(offsets, "offsets");
  check_float(to_unit, "to_unit");
  STD_TORCH_CHECK(offsets.size(0) == origins.size(0) + 1, "offsets must have one more entry than there are rays");
  STD_TORCH_CHECK(origins.numel() == 3 * origins.size(0) && directions.numel() == origins.numel(), "rays must be [R, 3]");
  STD_TORCH_CHECK(t_ends.numel() == t_starts.numel(), "t_starts and t_ends must be equally long");
  STD_TORCH_CHECK(to_unit.numel() == 6, "to_unit must be [2, 3]");
  return {
      data<float>(origins),
      data<float>(directions),
      data<float>(t_starts),
      data<float>(t_ends),
      data<int32_t>(offsets),
      data<float>(to_unit),
      origins.size(0),
      t_starts.size(0),
      checked_contraction(contraction),
      largest_depth(early_stop_eps),
      mutable_data<int32_t>(taken)};
}

std::tuple<Tensor, Tensor> instant_ngp_ray_densities(
    const Tensor& origins, const Tensor& directions, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets,
    const Tensor& working, const Tensor& levels, const Tensor& density1, const Tensor& density2, const Tensor& to_unit,
    double density_bias, double early_stop_eps, bool bfloat16, bool keep_features, int64_t contraction) {
  const Launch launch(origins);
  Tensor taken = torch::stable::new_zeros(offsets, {1}, ScalarType::Int);
  const RaySamples s =
      ray_samples(origins, directions, t_starts, t_ends, offsets, to_unit, contraction, early_stop_eps, taken);
  const Encoding e = encoding(working, levels);
  const FieldWeights w = density_weights(density1, density2);
  Tensor densities = torch::stable::new_zeros(origins, {s.n}, ScalarType::Float);
  Tensor features = empty(origins, {keep_features ? s.n : 0, kEncoded}, bfloat16 ? ScalarType::BFloat16 : ScalarType::Half);
  // Where nothing has been evaluated, a read of a missing sample gets row 0.
  if (keep_features && s.n > 0)
    STD_CUDA_CHECK(cudaMemsetAsync(features.data_ptr(), 0, kEncoded * sizeof(uint16_t), launch.stream));
  if (s.n_rays == 0 || s.n == 0) return {densities, features};
  for_features_and_type(e.n_features, bfloat16, [&](auto f, auto type) {
    using T = decltype(type);
    const auto kernel = ray_densities_kernel<f(), T>;
    const unsigned int grid = resident_blocks(kernel, kRayBlock, 0, blocks(s.n_rays, kRayWarps * kBatch));
    kernel<<<grid, kRayBlock, 0, launch.stream>>>(
        s, e, w, float(density_bias), mutable_data<float>(densities),
        keep_features ? reinterpret_cast<T*>(features.data_ptr()) : nullptr);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {densities, features};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> instant_ngp_render(
    const Tensor& origins, const Tensor& directions, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets,
    const Tensor& working, const Tensor& levels, const Tensor& density1, const Tensor& density2, const Tensor& color1,
    const Tensor& color2, const Tensor& color3, const Tensor& to_unit, double density_bias, double early_stop_eps,
    const Tensor& alpha_thre, bool bfloat16, int64_t contraction) {
  const Launch launch(origins);
  Tensor taken = torch::stable::new_zeros(offsets, {1}, ScalarType::Int);
  const RaySamples s =
      ray_samples(origins, directions, t_starts, t_ends, offsets, to_unit, contraction, early_stop_eps, taken);
  const Encoding e = encoding(working, levels);
  const FieldWeights w = field_weights(density1, density2, color1, color2, color3);
  check_float(alpha_thre, "alpha_thre");
  Tensor rgb = empty(origins, {s.n_rays, 3}, ScalarType::Float);
  Tensor opacity = empty(origins, {s.n_rays}, ScalarType::Float);
  Tensor depth = empty(origins, {s.n_rays}, ScalarType::Float);
  Tensor n_samples = empty(origins, {s.n_rays}, ScalarType::Int);
  if (s.n_rays == 0) return {rgb, opacity, depth, n_samples};
  const RenderOutputs out{
      mutable_data<float>(rgb), mutable_data<float>(opacity), mutable_data<float>(depth), mutable_data<int32_t>(n_samples)};
  for_features_and_type(e.n_features, bfloat16, [&](auto f, auto type) {
    using T = decltype(type);
    const auto kernel = render_kernel<f(), T>;
    const size_t bytes = sizeof(RenderShared<T>);
    const unsigned int grid = resident_blocks(kernel, kRayBlock, bytes, blocks(s.n_rays, kRayWarps * kBatch));
    kernel<<<grid, kRayBlock, bytes, launch.stream>>>(
        s, e, w, float(density_bias), early_stop_eps > 0.0 ? float(std::log(early_stop_eps)) : -INFINITY,
        data<float>(alpha_thre), out);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {rgb, opacity, depth, n_samples};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("instant_ngp_ray_densities", TORCH_BOX(&instant_ngp_ray_densities));
  m.impl("instant_ngp_render", TORCH_BOX(&instant_ngp_render));
}

}  // namespace lightning_nerf::instant_ngp
