#include "instant_ngp.h"

namespace lightning_nerf::instant_ngp {
namespace {

constexpr int kWarps = 8;
constexpr int kBlock = 32 * kWarps;

// Encodings that another kernel left: sample i's is row `sources[i]`, or row i without sources.
template <typename T>
struct Encoded {
  const T* features;       // [M, 32] or null
  const int32_t* sources;  // [N] or null
  int64_t n_rows;

  __device__ __forceinline__ const T* row(int64_t i, bool valid) const {
    const int64_t source = !valid ? 0 : sources != nullptr ? sources[i] : i;
    return features + kEncoded * (source >= 0 && source < n_rows ? source : 0);
  }
};

// ---- forward -------------------------------------------------------------------------------------------------------

template <typename T>
struct ForwardShared {
  SharedDensityNet<T> density;
  SharedColorNet<T> color;
  Level levels[kMaxLevels];
  T harmonics[kWarps][kTileRows * padded(kHarmonics)];
};

template <int F, typename T>
__global__ void __launch_bounds__(kBlock, 3) field_kernel(
    const float* __restrict__ positions,   // [N, 3] in [0, 1] inside the scene's box
    const float* __restrict__ directions,  // [N, 3] or null: densities only
    const Encoding encoding, const Encoded<T> encoded_before, const FieldWeights weights, float density_bias, int64_t n,
    float* __restrict__ densities,  // [N]
    float* __restrict__ rgb,        // [N, 3]
    T* __restrict__ features) {     // [N, 32] or null
  extern __shared__ __align__(16) char memory[];
  ForwardShared<T>& shared = *reinterpret_cast<ForwardShared<T>*>(memory);
  shared.density.template load<F>(weights);
  shared.color.load(weights);
  read_levels<3>(encoding.levels, 0, encoding.n_levels, encoding.n_rows, shared.levels);  // ends with a barrier
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  T* harmonics = shared.harmonics[warp];
  const int64_t stride = int64_t(gridDim.x) * kWarps * kTileRows;
  for (int64_t first = (blockIdx.x * int64_t(kWarps) + warp) * kTileRows; first < n; first += stride) {
    int64_t row[2];
    float x[2][3];
    bool valid[2], inside[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row[r] = first + g + 8 * r;
      valid[r] = row[r] < n;
      for (int a = 0; a < 3; ++a) x[r][a] = valid[r] ? positions[3 * row[r] + a] : 0.0f;
      inside[r] = inside_box(x[r]);
      for (int a = 0; a < 3; ++a) x[r][a] = clamp_to_unit(x[r][a]);
    }
    Operand<kEncoded> encoded;
    if (encoded_before.features != nullptr) {
#pragma unroll
      for (int r = 0; r < 2; ++r) load_encoding<F, T>(encoded, encoded_before.row(row[r], valid[r]), r, valid[r]);
    } else {
      encode<F, T>(encoded, shared.levels, encoding.table, x, valid);
    }
    if (features != nullptr) {
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (valid[r]) store_encoding<F, T>(features + kEncoded * row[r], encoded, r);
    }
    Accumulator<kGeometry> shape;
    geometry(shape, shared.density, encoded);
    if (t == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (valid[r]) densities[row[r]] = inside[r] ? __expf(shape.tile[0][2 * r] + density_bias) : 0.0f;
    }
    if (directions == nullptr) continue;
    share_harmonics(harmonics, padded(kHarmonics), directions + 3 * min(first + (lane & 15), n - 1));
    __syncwarp();
    Operand<kColorInput> in;
    load_block(in.block[0], harmonics, padded(kHarmonics));
    Operand<kGeometry> rounded;
    to_operand<T>(rounded, shape);
#pragma unroll
    for (int i = 0; i < 4; ++i) in.block[1][i] = rounded.block[0][i];
    __syncwarp();
    Accumulator<16> logits;
    color(logits, shared.color, in);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!valid[r] || t > 1) continue;
      rgb[3 * row[r] + 2 * t] = sigmoid(logits.tile[0][2 * r]);
      if (t == 0) rgb[3 * row[r] + 1] = sigmoid(logits.tile[0][2 * r + 1]);
    }
  }
}

// ---- backward ------------------------------------------------------------------------------------------------------

constexpr int kRows = kWarps * kTileRows;  // a block's rows at a time

// Activations of the block's rows. Once a layer's weight gradient has been taken, the gradient of its input takes the
// input's place.
template <typename T>
struct BackwardShared {
  SharedDensityNet<T> density;
  SharedColorNet<T> color;
  T encoded[kRows * padded(kEncoded)];
  T hidden1[kRows * padded(kHidden)];
  T color_in[kRows * padded(kColorInput)];
  T hidden2[kRows * padded(kHidden)];
  T hidden3[kRows * padded(kHidden)];
  T narrow[kRows * padded(16)];  // gradient of the logits, then of the geometry features
};

// Keeps of `grad` what passed the ReLU whose outputs are `active`.
template <typename T, int N>
__device__ __forceinline__ void mask_to_operand(Operand<N>& out, const Accumulator<N>& grad, const Operand<N>& active) {
#pragma unroll
  for (int k = 0; k < N / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 value = unpack_pair<T>(active.block[k][i]);
      const float (&c)[4] = grad.tile[2 * k + i / 2];
      out.block[k][i] = pack_pair<T>(value.x > 0.0f ? c[2 * (i & 1)] : 0.0f, value.y > 0.0f ? c[2 * (i & 1) + 1] : 0.0f);
    }
}

// A warp's share of the weight gradients: tiles of [16 outputs, 8 inputs].
struct GradientTiles {
  float density1[1][2][4] = {}, density2[1][1][4] = {}, color1[1][2][4] = {}, color2[2][2][4] = {}, color3[1][1][4] = {};
};

template <int Outputs, int Inputs>
__device__ __forceinline__ void store_tiles(
    float* out, const float (&sum)[Outputs][Inputs][4], int n_rows, int n_columns, int row, int column) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int i = 0; i < Outputs; ++i)
#pragma unroll
    for (int j = 0; j < Inputs; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = row + 16 * i + g + 8 * half;
        const float2 pair = make_float2(sum[i][j][2 * half], sum[i][j][2 * half + 1]);
        if (r < n_rows) *reinterpret_cast<float2*>(out + r * n_columns + column + 8 * j + 2 * t) = pair;
      }
}

// The encodings of 16 rows from `begin` on, 64 bytes a row: 16 bytes a lane.
template <typename T>
__device__ __forceinline__ void load_features(T* rows, const Encoded<T>& features, int64_t begin, int64_t n) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = (lane + 32 * i) / 4, part = lane & 3;
    const uint4 zero = make_uint4(0u, 0u, 0u, 0u);
    *reinterpret_cast<uint4*>(rows + r * padded(kEncoded) + 8 * part) =
        begin + r < n ? reinterpret_cast<const uint4*>(features.row(begin + r, true))[part] : zero;
  }
}

// The gradients of the logits from those of the colors.
template <typename T>
__device__ __forceinline__ void logit_gradients(
    Operand<16>& narrow, const Accumulator<16>& logits, const float (&given_rgb)[2][2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float grad[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) grad[c] = logit_gradient(sigmoid(logits.tile[0][2 * r + c]), given_rgb[r][c]);
    narrow.block[0][r] = pack_pair<T>(grad[0], grad[1]);
    narrow.block[0][2 + r] = 0u;
  }
}

// Long, because its stages share fragments and a warp's shared rows: as functions they compile to other code, and this one
// has to fit the 128 registers that two blocks leave a thread.
template <typename T>
__global__ void __launch_bounds__(kBlock, 2) field_backward_kernel(
    const float* __restrict__ grad_density,  // [N] or null
    const float* __restrict__ grad_rgb,      // [N, 3] or null
    const float* __restrict__ positions,     // [N, 3]
    const float* __restrict__ directions,    // [N, 3]
    const Encoded<T> features, const FieldWeights weights, float density_bias, int64_t n,
    T* __restrict__ grad_features,  // [N, 32]
    float* __restrict__ partial) {  // [blocks, kAllParameters]
  extern __shared__ __align__(16) char memory[];
  BackwardShared<T>& shared = *reinterpret_cast<BackwardShared<T>*>(memory);
  shared.density.template load<2>(weights);  // natural order
  shared.color.load(weights);
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  // This warp's share of the weights: of 32 inputs 16 and of 64 outputs 16; of 64 x 64 a square of 32 outputs, 16 inputs.
  const int column32 = 16 * (warp & 1), row32 = 16 * (warp >> 1), column64 = 16 * (warp & 3), row64 = 32 * (warp >> 2);
  const int own = warp * kTileRows;
  T* encoded_rows = shared.encoded + own * padded(kEncoded);
  T* hidden1_rows = shared.hidden1 + own * padded(kHidden);
  T* color_rows = shared.color_in + own * padded(kColorInput);
  T* hidden2_rows = shared.hidden2 + own * padded(kHidden);
  T* hidden3_rows = shared.hidden3 + own * padded(kHidden);
  T* narrow_rows = shared.narrow + own * padded(16);
  GradientTiles sums;
  __syncthreads();

  for (int64_t first = blockIdx.x * int64_t(kRows); first < n; first += int64_t(gridDim.x) * kRows) {
    // This warp's rows: the forward pass again.
    const int64_t begin = first + own;
    load_features(encoded_rows, features, begin, n);
    const float nowhere[3] = {};  // without directions no color has a gradient
    share_harmonics(
        color_rows, padded(kColorInput),
        directions != nullptr ? directions + 3 * min(begin + (lane & 15), n - 1) : nowhere);

    // All of a tile's reads at its start, in one wait.
    float given_density[2] = {}, given_rgb[2][2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = begin + g + 8 * r;
      if (row >= n) continue;
      if (t == 0 && grad_density != nullptr) {
        const float x[3] = {positions[3 * row], positions[3 * row + 1], positions[3 * row + 2]};
        given_density[r] = inside_box(x) ? grad_density[row] : 0.0f;
      }
      if (t < 2 && grad_rgb != nullptr) {
        given_rgb[r][0] = grad_rgb[3 * row + 2 * t];
        if (t == 0) given_rgb[r][1] = grad_rgb[3 * row + 1];
      }
    }
    __syncwarp();

    float grad_log_density[2] = {};
    Operand<kHidden> active;
    Operand<16> narrow;
    {
      Operand<kEncoded> encoded;
      load_operand(encoded, encoded_rows, padded(kEncoded));
      Accumulator<kHidden> hidden;
      hidden.clear();
      multiply(hidden, encoded, shared.density.first);
      relu_to_operand<T>(active, hidden);
      store_operand(hidden1_rows, padded(kHidden), active);
      Accumulator<kGeometry> shape;
      shape.clear();
      multiply(shape, active, shared.density.second);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float log_density = shape.tile[0][2 * r] + density_bias;
        grad_log_density[r] = given_density[r] * __expf(fminf(fmaxf(log_density, -kLargestLogDensity), kLargestLogDensity));
      }
      Operand<kGeometry> rounded;
      to_operand<T>(rounded, shape);
      store_operand(color_rows + kHarmonics, padded(kColorInput), rounded);
      __syncwarp();
      Operand<kColorInput> in;
      load_operand(in, color_rows, padded(kColorInput));
      hidden.clear();
      multiply(hidden, in, shared.color.first);
      relu_to_operand<T>(active, hidden);
      store_operand(hidden2_rows, padded(kHidden), active);
      hidden.clear();
      multiply(hidden, active, shared.color.second);
      relu_to_operand<T>(active, hidden);
      store_operand(hidden3_rows, padded(kHidden), active);
      Accumulator<16> logits;
      logits.clear();
      multiply(logits, active, shared.color.third);
      logit_gradients<T>(narrow, logits, given_rgb);
      store_operand(narrow_rows, padded(16), narrow);
    }

    // Backwards. Between two barriers all warps read the rows of all, or each writes its own.
    Accumulator<kHidden> grad;
    grad.clear();
    multiply_transposed<16, kHidden, kHidden, 0>(grad, narrow, shared.color.third);
    Operand<kHidden> passed;
    mask_to_operand<T>(passed, grad, active);
    __syncthreads();
    accumulate_weight_gradient<kRows>(sums.color3, shared.narrow, padded(16), shared.hidden3 + 8 * warp, padded(kHidden));
    __syncthreads();

    store_operand(hidden3_rows, padded(kHidden), passed);
    grad.clear();
    multiply_transposed<kHidden, kHidden, kHidden, 0>(grad, passed, shared.color.second);
    load_operand(active, hidden2_rows, padded(kHidden));
    mask_to_operand<T>(passed, grad, active);
    __syncthreads();
    accumulate_weight_gradient<kRows>(
        sums.color2, shared.hidden3 + row64, padded(kHidden), shared.hidden2 + column64, padded(kHidden));
    __syncthreads();

    store_operand(hidden2_rows, padded(kHidden), passed);
    {
      Accumulator<kGeometry> grad_shape;
      grad_shape.clear();
      multiply_transposed<kHidden, kGeometry, kColorInput, kHarmonics>(grad_shape, passed, shared.color.first);
      grad_shape.tile[0][0] += grad_log_density[0];  // of threads with t = 0, which hold column 0
      grad_shape.tile[0][2] += grad_log_density[1];
      to_operand<T>(narrow, grad_shape);
      store_operand(narrow_rows, padded(16), narrow);
    }
    grad.clear();
    multiply_transposed<kGeometry, kHidden, kHidden, 0>(grad, narrow, shared.density.second);
    load_operand(active, hidden1_rows, padded(kHidden));
    mask_to_operand<T>(passed, grad, active);
    __syncthreads();
    accumulate_weight_gradient<kRows>(
        sums.color1, shared.hidden2 + row32, padded(kHidden), shared.color_in + column32, padded(kColorInput));
    accumulate_weight_gradient<kRows>(sums.density2, shared.narrow, padded(16), shared.hidden1 + 8 * warp, padded(kHidden));
    __syncthreads();

    store_operand(hidden1_rows, padded(kHidden), passed);
    {
      Accumulator<kEncoded> grad_encoded;
      grad_encoded.clear();
      multiply_transposed<kHidden, kEncoded, kEncoded, 0>(grad_encoded, passed, shared.density.first);
      Operand<kEncoded> rounded;
      to_operand<T>(rounded, grad_encoded);
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (begin + g + 8 * r < n) store_encoding<2, T>(grad_features + kEncoded * (begin + g + 8 * r), rounded, r);
    }
    __syncthreads();
    accumulate_weight_gradient<kRows>(
        sums.density1, shared.hidden1 + row32, padded(kHidden), shared.encoded + column32, padded(kEncoded));
    __syncthreads();
  }

  float* out = partial + int64_t(blockIdx.x) * kAllParameters;
  store_tiles(out, sums.density1, kHidden, kEncoded, row32, column32);
  store_tiles(out + kEndDensity1, sums.density2, kGeometry, kHidden, 0, 8 * warp);
  store_tiles(out + kEndDensity2, sums.color1, kHidden, kColorInput, row32, column32);
  store_tiles(out + kEndColor1, sums.color2, kHidden, kHidden, row64, column64);
  store_tiles(out + kEndColor2, sums.color3, 3, kHidden, 0, 8 * warp);
}

// has_kernels in ops/instant_ngp.py asks the GPU for so much.
static_assert(sizeof(BackwardShared<__half>) <= 106496, "update SHARED_BYTES in ops/instant_ngp.py");

// ---- launchers -----------------------------------------------------------------------------------------------------

void check_rows(const Tensor& t, int64_t n, int64_t columns, const char* name) {
  STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == n && t.size(1) == columns, name, " must be [", n, ", ", columns, "]");
}

const float* optional_directions(const std::optional<Tensor>& directions, int64_t n) {
  if (!directions.has_value()) return nullptr;
  check_float(*directions, "directions");
  check_rows(*directions, n, 3, "directions");
  return data<float>(*directions);
}

template <typename T>
Encoded<T> encoded_rows(const std::optional<Tensor>& features, const std::optional<Tensor>& sources, int64_t n) {
  if (!features.has_value()) return {nullptr, nullptr, 0};
  check(*features, scalar_type<T>(), "features");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(features->data_ptr()) % 16 == 0, "features must be aligned to 16 bytes");
  const int64_t n_rows = features->size(0);
  check_rows(*features, n_rows, kEncoded, "features");
  STD_TORCH_CHECK(n_rows > 0 || n == 0, "features must not be empty");
  if (sources.has_value()) {
    check_int(*sources, "sources");
    STD_TORCH_CHECK(sources->dim() == 1 && sources->size(0) == n, "sources must be [", n, "]");
  } else {
    STD_TORCH_CHECK(n_rows == n, "features must be [", n, ", 32]");
  }
  return {
      reinterpret_cast<const T*>(features->data_ptr()), sources.has_value() ? data<int32_t>(*sources) : nullptr, n_rows};
}

std::tuple<Tensor, Tensor, Tensor> instant_ngp_field(
    const Tensor& positions, const std::optional<Tensor>& directions, const Tensor& table, const Tensor& working,
    const Tensor& levels, const std::optional<Tensor>& encoded, const std::optional<Tensor>& sources,
    const Tensor& density1, const Tensor& density2, const Tensor& color1, const Tensor& color2, const Tensor& color3,
    double density_bias, bool bfloat16, bool keep_features) {
  check_float(positions, "positions");
  const int64_t n = positions.size(0);
  check_rows(positions, n, 3, "positions");
  const float* directions_data = optional_directions(directions, n);
  const Encoding e = encoding(working, levels);
  const FieldWeights w = field_weights(density1, density2, color1, color2, color3);
  const Launch launch(positions);
  Tensor densities = empty(positions, {n}, ScalarType::Float);
  Tensor rgb = empty(positions, {directions.has_value() ? n : 0, 3}, ScalarType::Float);
  Tensor features = empty(positions, {keep_features ? n : 0, kEncoded}, bfloat16 ? ScalarType::BFloat16 : ScalarType::Half);
  if (n == 0) return {densities, rgb, features};
  for_features_and_type(e.n_features, bfloat16, [&](auto f, auto type) {
    using T = decltype(type);
    const auto kernel = field_kernel<f(), T>;
    const size_t bytes = sizeof(ForwardShared<T>);
    const unsigned int grid = resident_blocks(kernel, kBlock, bytes, blocks(n, kRows));
    kernel<<<grid, kBlock, bytes, launch.stream>>>(
        data<float>(positions), directions_data, e, encoded_rows<T>(encoded, sources, n), w, float(density_bias), n,
        mutable_data<float>(densities), mutable_data<float>(rgb),
        keep_features ? reinterpret_cast<T*>(features.data_ptr()) : nullptr);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {densities, rgb, features};
}

std::tuple<Tensor, Tensor> instant_ngp_field_backward(
    const std::optional<Tensor>& grad_density, const std::optional<Tensor>& grad_rgb, const Tensor& positions,
    const std::optional<Tensor>& directions, const Tensor& features, const std::optional<Tensor>& sources,
    const Tensor& density1, const Tensor& density2, const Tensor& color1, const Tensor& color2, const Tensor& color3,
    double density_bias) {
  const int64_t n = positions.size(0);
  check_float(positions, "positions");
  check_rows(positions, n, 3, "positions");
  const float* directions_data = optional_directions(directions, n);
  if (grad_density.has_value()) {
    check_float(*grad_density, "grad_density");
    STD_TORCH_CHECK(grad_density->numel() == n, "grad_density must be [", n, "]");
  }
  if (grad_rgb.has_value()) {
    check_float(*grad_rgb, "grad_rgb");
    check_rows(*grad_rgb, n, 3, "grad_rgb");
    STD_TORCH_CHECK(directions.has_value(), "grad_rgb without directions: there is no color");
  }
  const FieldWeights w = field_weights(density1, density2, color1, color2, color3);
  const Launch launch(positions);
  Tensor grad_features = empty(features, {n, kEncoded}, features.scalar_type());
  Tensor grad_weights = empty(positions, {kAllParameters}, ScalarType::Float);
  const bool bfloat16 = features.scalar_type() == ScalarType::BFloat16;
  for_features_and_type(2, bfloat16, [&](auto, auto type) {
    using T = decltype(type);
    const Encoded<T> rows = encoded_rows<T>(features, sources, n);
    const auto kernel = field_backward_kernel<T>;
    const size_t bytes = sizeof(BackwardShared<T>);
    const unsigned int grid = n == 0 ? 0 : resident_blocks(kernel, kBlock, bytes, blocks(n, kRows));
    Tensor partial = empty(positions, {int64_t(grid), kAllParameters}, ScalarType::Float);
    if (grid > 0) {
      kernel<<<grid, kBlock, bytes, launch.stream>>>(
          grad_density.has_value() ? data<float>(*grad_density) : nullptr,
          grad_rgb.has_value() ? data<float>(*grad_rgb) : nullptr, data<float>(positions), directions_data, rows, w,
          float(density_bias), n, reinterpret_cast<T*>(grad_features.data_ptr()), mutable_data<float>(partial));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    sum_partials<FieldWeights>(partial, grad_weights, launch.stream);
  });
  return {grad_features, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("instant_ngp_field", TORCH_BOX(&instant_ngp_field));
  m.impl("instant_ngp_field_backward", TORCH_BOX(&instant_ngp_field_backward));
}

}  // namespace lightning_nerf::instant_ngp
