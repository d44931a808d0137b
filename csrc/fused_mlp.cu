#include <algorithm>

#include "fused_mlp.cuh"
#include "persistent.cuh"

namespace lightning_nerf::fused_mlp {
namespace {

constexpr int kWarps = 8;
constexpr int kBlock = 32 * kWarps;
constexpr int kRows = kWarps * kTileRows;  // a block's rows at a time

// ---- forward -------------------------------------------------------------------------------------------------------

template <int W, typename T>
__global__ void __launch_bounds__(kBlock, W > 64 ? 2 : 3) forward_kernel(
    const Rows x,  // [N, inputs]
    const Layers layers, int64_t n,
    const Rows y) {  // [N, outputs]
  extern __shared__ __align__(16) char memory[];
  const SharedLayers<W, T> net(layers, reinterpret_cast<T*>(memory));
  __syncthreads();
  const int64_t stride = int64_t(gridDim.x) * kRows;
  for (int64_t first = (blockIdx.x * int64_t(kWarps) + threadIdx.x / 32) * kTileRows; first < n; first += stride) {
    Accumulator<W> sum;
    Operand<W> active;
    first_layer(sum, x, first, n, net);
    relu_to_operand<T>(active, sum);
#pragma unroll 1
    for (int i = 0; i < net.hidden_count; ++i) {
      sum.clear();
      multiply(sum, active, net.hidden + i * SharedLayers<W, T>::kHidden);
      relu_to_operand<T>(active, sum);
    }
#pragma unroll 1
    for (int k = 0; k < net.output_blocks; ++k) {
      Accumulator<16> out;
      out.clear();
      multiply(out, active, net.last + k * SharedLayers<W, T>::kLastBlock);
      store_rows(y, first, n, k, out);
    }
  }
}

// ---- backward ------------------------------------------------------------------------------------------------------
// Two kernels. The first chains the gradient of the activations back to the input and leaves, of each hidden layer, its
// activations and their gradient before the ReLU. The second forms the weights' gradients from these. Sums of weight
// gradients on chip would take 64 registers a thread for each layer of width 128.

// Signs of the layers' activations, the last in, first out. Moved, not indexed, to stay in registers.
template <int W>
struct SignStack {
  Signs<W> signs[kMaxLayers - 1] = {};
  __device__ __forceinline__ void push(Signs<W> value) {
#pragma unroll
    for (int i = kMaxLayers - 2; i > 0; --i) signs[i] = signs[i - 1];
    signs[0] = value;
  }
  __device__ __forceinline__ Signs<W> pop() {
    const Signs<W> value = signs[0];
#pragma unroll
    for (int i = 0; i < kMaxLayers - 2; ++i) signs[i] = signs[i + 1];
    return value;
  }
};

template <int W, typename T>
__global__ void __launch_bounds__(kBlock, 2) backward_kernel(
    const Rows grad,  // [N, outputs]
    const Rows x,     // [N, inputs]
    const Layers layers, int64_t n,
    T* __restrict__ hidden,       // [hidden layers, N, W] or null
    T* __restrict__ grad_hidden,  // [hidden layers, N, W] or null
    const Rows grad_x) {          // [N, inputs] or null
  extern __shared__ __align__(16) char memory[];
  const SharedLayers<W, T> net(layers, reinterpret_cast<T*>(memory));
  __syncthreads();
  const int64_t stride = int64_t(gridDim.x) * kRows, layer = n * W;
  for (int64_t first = (blockIdx.x * int64_t(kWarps) + threadIdx.x / 32) * kTileRows; first < n; first += stride) {
    Accumulator<W> sum;
    Operand<W> operand;
    SignStack<W> signs;
    // The forward pass again.
    first_layer(sum, x, first, n, net);
    relu_to_operand<T>(operand, sum);
    signs.push(positive<T>(operand));
    if (hidden != nullptr) store_rows(hidden, first, n, operand);
#pragma unroll 1
    for (int i = 0; i < net.hidden_count; ++i) {
      sum.clear();
      multiply(sum, operand, net.hidden + i * SharedLayers<W, T>::kHidden);
      relu_to_operand<T>(operand, sum);
      signs.push(positive<T>(operand));
      if (hidden != nullptr) store_rows(hidden + (i + 1) * layer, first, n, operand);
    }
    sum.clear();
#pragma unroll 1
    for (int k = 0; k < net.output_blocks; ++k) {
      Operand<16> in;
      load_rows<T>(in, grad, first, n, k);
      multiply_transposed<16, W, W, 0>(sum, in, net.last + k * SharedLayers<W, T>::kLastBlock);
    }
    mask_to_operand<T>(operand, sum, signs.pop());
    if (grad_hidden != nullptr) store_rows(grad_hidden + net.hidden_count * layer, first, n, operand);
#pragma unroll 1
    for (int i = net.hidden_count - 1; i >= 0; --i) {
      sum.clear();
      multiply_transposed<W, W, W, 0>(sum, operand, net.hidden + i * SharedLayers<W, T>::kHidden);
      mask_to_operand<T>(operand, sum, signs.pop());
      if (grad_hidden != nullptr) store_rows(grad_hidden + i * layer, first, n, operand);
    }
    if (grad_x.data == nullptr) continue;
#pragma unroll 1
    for (int k = 0; k < net.input_blocks; ++k) {
      Accumulator<16> out;
      out.clear();
      multiply_transposed<W, 16, 16, 0>(out, operand, net.first + k * SharedLayers<W, T>::kFirstBlock);
      store_rows(grad_x, first, n, k, out);
    }
  }
}

// One layer's weight gradient, grad^T in: [grad.width, in.width].
struct Product {
  Rows grad;       // [N, outputs] of the layer
  Rows in;         // [N, inputs]
  int64_t offset;  // in the flat list of all weights
};
struct Products {
  Product of[kMaxLayers];
};

__device__ __forceinline__ void copy_16_bytes(void* shared, const void* global, bool valid) {  // zeros if not valid
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// The whole block: kRows rows from `first` on to shared rows of `columns` operands, zeros outside of the matrix.
template <typename T>
__device__ __forceinline__ void share_rows(T* shared, int columns, const Rows& m, int64_t first, int64_t n) {
  const int stride = padded(columns);
  if (m.direct) {
    const int per_row = columns / 8;
    for (int i = threadIdx.x; i < kRows * per_row; i += kBlock) {
      const int row = i / per_row, column = 8 * (i - row * per_row);
      const bool valid = first + row < n && column < m.width;
      const T* source = static_cast<const T*>(m.data) + (valid ? (first + row) * m.width + column : 0);
      copy_16_bytes(shared + row * stride + column, source, valid);
    }
    return;
  }
  const int per_row = columns / 4;
#pragma unroll 4
  for (int i = threadIdx.x; i < kRows * per_row; i += kBlock) {
    const int row = i / per_row, column = 4 * (i - row * per_row);
    const float4 v = first + row < n ? load_four(m, first + row, column) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    *reinterpret_cast<uint2*>(shared + row * stride + column) = make_uint2(pack_pair<T>(v.x, v.y), pack_pair<T>(v.z, v.w));
  }
}

constexpr int kPieceRows = 64, kPieceColumns = 32;  // of a weight's gradient, in a warp's registers

__host__ __device__ constexpr size_t shared_bytes(int outputs, int inputs) {  // at least 4 outputs inputs, for their sums
  return size_t(2) * kRows * (padded(round_up_to_16(outputs)) + padded(round_up_to_16(inputs)));
}

// Block (b, l) sums layer l's gradient over every gridDim.x-th group of kRows rows. Its warps share out pieces of the
// matrix and, where these are fewer than warps, the rows.
template <typename T>
__global__ void __launch_bounds__(kBlock, 2) weight_gradient_kernel(
    const Products products, int64_t n, int64_t n_weights,
    float* __restrict__ partial) {  // [gridDim.x, n_weights]
  extern __shared__ __align__(16) char memory[];
  const Product& p = products.of[blockIdx.y];
  const int rows = round_up_to_16(p.grad.width), columns = round_up_to_16(p.in.width);
  T* grad = reinterpret_cast<T*>(memory);
  T* in = grad + kRows * padded(rows);
  const int across = (columns + kPieceColumns - 1) / kPieceColumns, down = (rows + kPieceRows - 1) / kPieceRows;
  const int pieces = across * down, parts = kWarps / pieces;
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, piece = warp % pieces, part = warp / pieces;
  const int row0 = piece / across * kPieceRows, column0 = piece % across * kPieceColumns;
  const T* left = grad + ((lane & 7) + 8 * (lane >> 4)) * padded(rows) + row0 + 8 * ((lane >> 3) & 1);
  const T* right = in + (lane & 15) * padded(columns) + column0 + 8 * (lane >> 4);
  float sum[kPieceRows / 16][kPieceColumns / 8][4] = {};
  for (int64_t first = blockIdx.x * int64_t(kRows); first < n; first += int64_t(gridDim.x) * kRows) {
    share_rows(grad, rows, p.grad, first, n);
    share_rows(in, columns, p.in, first, n);
    wait_for_copies();
    __syncthreads();
    if (part < parts) {
      for (int r = part * 16; r < kRows; r += parts * 16) {
        uint32_t b[kPieceColumns / 16][4] = {};
#pragma unroll
        for (int j = 0; j < kPieceColumns / 16; ++j)
          if (column0 + 16 * j < columns) load_tiles_transposed(b[j], right + r * padded(columns) + 16 * j);
#pragma unroll
        for (int i = 0; i < kPieceRows / 16; ++i) {
          if (row0 + 16 * i >= rows) continue;
          uint32_t a[4];
          load_tiles_transposed(a, left + r * padded(rows) + 16 * i);
#pragma unroll
          for (int j = 0; j < kPieceColumns / 16; ++j) {
            if (column0 + 16 * j >= columns) continue;
            mma(sum[i][2 * j], a, b[j][0], b[j][1], T());
            mma(sum[i][2 * j + 1], a, b[j][2], b[j][3], T());
          }
        }
      }
    }
    __syncthreads();
  }

  // The parts' sums, one after the other: [rows, columns].
  float* total = reinterpret_cast<float*>(memory);
  const int g = lane >> 2, t = lane & 3;
  for (int turn = 0; turn < parts; ++turn) {
    if (part == turn) {
#pragma unroll
      for (int i = 0; i < kPieceRows / 16; ++i)
#pragma unroll
        for (int j = 0; j < kPieceColumns / 8; ++j) {
          if (row0 + 16 * i >= rows || column0 + 8 * j >= columns) continue;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float2* at =
                reinterpret_cast<float2*>(total + (row0 + 16 * i + g + 8 * half) * columns + column0 + 8 * j + 2 * t);
            const float2 before = turn == 0 ? make_float2(0.0f, 0.0f) : *at;
            *at = make_float2(before.x + sum[i][j][2 * half], before.y + sum[i][j][2 * half + 1]);
          }
        }
    }
    __syncthreads();
  }
  float* out = partial + blockIdx.x * n_weights + p.offset;
  for (int i = threadIdx.x; i < p.grad.width * p.in.width; i += kBlock) {
    const int row = i / p.in.width;
    out[i] = total[row * columns + i - row * p.in.width];
  }
}

// ---- launchers -----------------------------------------------------------------------------------------------------
// The op functions check, allocate and launch themselves: they run on CUDA alone, and no second launcher would share them.

Rows rows_of(void* data, int64_t width, ScalarType type, ScalarType operands) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const bool wide = type == ScalarType::Float;
  return {
      data, int(width),
      wide                       ? Number::Float
      : type == ScalarType::Half ? Number::Half
                                 : Number::BFloat16,
      width % 4 == 0 && address % (wide ? 16 : 8) == 0, type == operands && width % 8 == 0 && address % 16 == 0};
}

Rows rows_of(const Tensor& t, ScalarType operands, const char* name) {
  const ScalarType type = t.scalar_type();
  STD_TORCH_CHECK(
      type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16, name, " has the wrong dtype");
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(t.dim() == 2 && t.size(1) >= 1 && t.size(1) <= 128, name, " must be [N, 1 to 128]");
  return rows_of(t.data_ptr(), t.size(1), type, operands);
}

using MaybeTensor = std::optional<Tensor>;

Layers layers_of(
    const Tensor& x, const Tensor& weight1, const Tensor& weight2, const MaybeTensor& weight3, const MaybeTensor& weight4,
    const MaybeTensor& weight5) {
  Layers layers = {};
  int64_t inputs = x.size(1);
  const auto add = [&](const Tensor& weight) {
    check_float(weight, "weight");
    STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == inputs, "a weight must be [outputs, ", inputs, "]");
    layers.weight[layers.count++] = rows_of(weight, ScalarType::Float, "weight");
    inputs = weight.size(0);
  };
  add(weight1);
  add(weight2);
  for (const MaybeTensor* weight : {&weight3, &weight4, &weight5}) {
    if (!weight->has_value()) break;
    STD_TORCH_CHECK(inputs == weight1.size(0), "hidden layers must have one width");
    add(**weight);
  }
  layers.n_outputs = int(inputs);
  STD_TORCH_CHECK(inputs >= 1 && inputs <= 128, "expected 1 to 128 outputs");
  return layers;
}

// body(W, T()) for the hidden width and the operands' type.
template <typename Body>
void for_width_and_type(int64_t width, ScalarType type, const Body& body) {
  const auto with_width = [&](auto w) {
    if (type == ScalarType::BFloat16) body(w, __nv_bfloat16());
    else if (type == ScalarType::Half) body(w, __half());
    else STD_TORCH_CHECK(false, "dtype must be float16 or bfloat16");
  };
  switch (width) {
    case 16: return with_width(std::integral_constant<int, 16>());
    case 32: return with_width(std::integral_constant<int, 32>());
    case 64: return with_width(std::integral_constant<int, 64>());
    case 128: return with_width(std::integral_constant<int, 128>());
    default: STD_TORCH_CHECK(false, "hidden width must be 16, 32, 64 or 128");
  }
}

Tensor fused_mlp(
    const Tensor& x, const Tensor& weight1, const Tensor& weight2, const MaybeTensor& weight3, const MaybeTensor& weight4,
    const MaybeTensor& weight5, ScalarType dtype) {
  const Rows in = rows_of(x, dtype, "x");
  const Layers layers = layers_of(x, weight1, weight2, weight3, weight4, weight5);
  const int64_t n = x.size(0);
  const Launch launch(x);
  Tensor y = empty(x, {n, layers.n_outputs}, dtype);
  if (n == 0) return y;
  for_width_and_type(weight1.size(0), dtype, [&](auto w, auto type) {
    using T = decltype(type);
    const auto kernel = forward_kernel<w(), T>;
    const size_t bytes = sizeof(T) * SharedLayers<w(), T>::size(layers);
    const unsigned int grid = resident_blocks(kernel, kBlock, bytes, blocks(n, kRows));
    kernel<<<grid, kBlock, bytes, launch.stream>>>(in, layers, n, rows_of(y, dtype, "y"));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return y;
}

template <typename T>
Tensor weight_gradients(
    const Launch& launch, const Rows& grad, const Rows& x, const Tensor& like, const Layers& layers, int width, int64_t n,
    T* hidden, T* grad_hidden) {
  Products products;
  int64_t n_weights = 0;
  size_t bytes = 0;
  for (int i = 0; i < layers.count; ++i) {
    const auto matrix = [&](T* data, int of) {
      return rows_of(data + of * n * width, width, scalar_type<T>(), scalar_type<T>());
    };
    Product& p = products.of[i];
    p.grad = i + 1 == layers.count ? grad : matrix(grad_hidden, i);
    p.in = i == 0 ? x : matrix(hidden, i - 1);
    p.offset = n_weights;
    n_weights += int64_t(p.grad.width) * p.in.width;
    bytes = std::max(bytes, shared_bytes(p.grad.width, p.in.width));
  }
  Tensor sums = empty(like, {n_weights}, ScalarType::Float);
  int64_t grid = 0;
  if (n > 0) {
    const int64_t groups = blocks(n, kRows);
    const unsigned int resident = resident_blocks(weight_gradient_kernel<T>, kBlock, bytes, groups * layers.count);
    grid = std::max(int64_t(1), std::min(groups, int64_t(resident) / layers.count));
  }
  Tensor partial = empty(like, {grid, n_weights}, ScalarType::Float);
  if (n > 0) {
    weight_gradient_kernel<T>
        <<<dim3(grid, layers.count), kBlock, bytes, launch.stream>>>(products, n, n_weights, mutable_data<float>(partial));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  sum_partials<Layers>(partial, sums, launch.stream);
  return sums;
}

std::tuple<Tensor, Tensor> fused_mlp_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight1, const Tensor& weight2, const MaybeTensor& weight3,
    const MaybeTensor& weight4, const MaybeTensor& weight5, ScalarType dtype, bool for_input, bool for_weights) {
  const Rows in = rows_of(x, dtype, "x"), outer = rows_of(grad, dtype, "grad");
  const Layers layers = layers_of(x, weight1, weight2, weight3, weight4, weight5);
  const int64_t n = x.size(0), width = weight1.size(0);
  STD_TORCH_CHECK(grad.size(0) == n && grad.size(1) == layers.n_outputs, "grad must be [", n, ", ", layers.n_outputs, "]");
  const Launch launch(x);
  Tensor grad_x = for_input ? empty(x, {n, x.size(1)}, x.scalar_type()) : empty(x, {0}, x.scalar_type());
  Tensor grad_weights = empty(x, {0}, ScalarType::Float);
  const int64_t kept = for_weights ? layers.count - 1 : 0;
  Tensor hidden = empty(x, {kept, n, width}, dtype), grad_hidden = empty(x, {kept, n, width}, dtype);
  for_width_and_type(width, dtype, [&](auto w, auto type) {
    using T = decltype(type);
    T* const hidden_data = for_weights ? reinterpret_cast<T*>(hidden.data_ptr()) : nullptr;
    T* const grad_hidden_data = for_weights ? reinterpret_cast<T*>(grad_hidden.data_ptr()) : nullptr;
    if (n > 0) {
      const auto kernel = backward_kernel<w(), T>;
      const size_t bytes = sizeof(T) * SharedLayers<w(), T>::size(layers);
      const unsigned int grid = resident_blocks(kernel, kBlock, bytes, blocks(n, kRows));
      kernel<<<grid, kBlock, bytes, launch.stream>>>(
          outer, in, layers, n, hidden_data, grad_hidden_data, for_input ? rows_of(grad_x, dtype, "grad_x") : Rows{});
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    if (for_weights)
      grad_weights = weight_gradients<T>(launch, outer, in, x, layers, int(width), n, hidden_data, grad_hidden_data);
  });
  return {grad_x, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("fused_mlp", TORCH_BOX(&fused_mlp));
  m.impl("fused_mlp_backward", TORCH_BOX(&fused_mlp_backward));
}

}  // namespace lightning_nerf::fused_mlp
