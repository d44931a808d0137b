// Wide perceptrons on Hopper: all layers of a group of rows, one after the other, while its activations stay on the chip.
//
// A block of threads takes two groups of 64 rows at a time, one per warpgroup. Each keeps its hidden layer and its inputs in
// shared memory; a further warp brings the weights, block by block of 64 columns, which both use. The two soon run one layer
// apart: while one rounds its results, the other has the tensor cores. The backward pass runs the same chain over the
// transposed weights; the signs that the forward pass saved take the place of bias and ReLU.
#include "wide_mlp.h"

#include "wide_mlp.cuh"
#include "wide_mlp_inputs.cuh"

namespace lightning_nerf::wide_mlp {

namespace {

constexpr int kWarpgroup = 128;
constexpr int kChainThreads = (kGroups + 1) * kWarpgroup;  // the last warpgroup brings weights
constexpr uint32_t kStageBytes = 2 * kMaxOutputs * hopper::kBlockColumns;

// Narrow weights come several blocks at a time: each load takes its latency.
__host__ __device__ constexpr int blocks_per_stage(int width) { return width < 32 ? 8 : kMaxOutputs / width; }

struct Chain {
  const Link* links;
  int n_links;
  const void* weights;  // blocks in the order of use
  const float* biases;  // forward
  const void* inputs;   // [groups, input_blocks] blocks
  int input_blocks;
  void* saved;  // [groups, saved_blocks] blocks: hidden results; null: not kept
  int saved_blocks;
  uint32_t* signs;  // [groups, saved_blocks, 128 threads] 32 signs of each thread's results in a block
  float* y;         // [n, y_columns]: outputs, or the input's gradient; null: none
  int y_columns;
  const int* count;  // rows that count, at most n; null: all
  int64_t n;
  int stages;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// The ring of weights in shared memory, as one of its users sees it.
struct Ring {
  uint32_t stages, full, empty;  // addresses
  int size, at = 0;
  uint32_t parity = 0;

  __device__ uint32_t stage() const { return stages + at * kStageBytes; }
  __device__ void advance() {
    if (++at == size) at = 0, parity ^= 1;
  }
};

// acc += operand times weights, both as they lie in shared memory.
template <int N, typename T>
__device__ void product(float (&acc)[N / 2], const Link& link, uint32_t hidden, uint32_t inputs, Ring& ring) {
  constexpr int kAtOnce = blocks_per_stage(N);
  const int blocks = link.hidden_blocks + link.input_blocks;
  uint32_t used = 0, b = 0;
  for (int i = 0; i < blocks; ++i) {
    const bool fresh = i % kAtOnce == 0;  // a stage of the ring
    const uint32_t before = used;
    if (fresh) {
      hopper::wait_for(ring.full + 8 * ring.at, ring.parity);
      b = ring.stage();
      used = ring.empty + 8 * ring.at;
      ring.advance();
    }
    const uint32_t a = i < link.hidden_blocks ? hidden + i * kBlockBytes
                                              : inputs + (link.input_first + i - link.hidden_blocks) * kBlockBytes;
    hopper::begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k) hopper::multiply<N, T, 0>(acc, hopper::k_major(a + 32 * k), hopper::k_major(b + 32 * k));
    hopper::commit_products();
    b += 2 * N * hopper::kBlockColumns;
    if (i > 0) {
      hopper::wait_for_products<1>();
      if (fresh && threadIdx.x % 32 == 0) hopper::arrive(before);
    }
  }
  hopper::wait_for_products<0>();
  if (threadIdx.x % 32 == 0) hopper::arrive(used);
}

__device__ inline uint32_t pack(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(both);
}
__device__ inline uint32_t pack(float low, float high, __half) {
  const __half2 both = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(both);
}

// Writes the results of 64 rows, rounded to the operands' type, to the warpgroup's hidden blocks.
template <int N, typename T>
__device__ void put_hidden(const float (&acc)[N / 2], uint32_t hidden) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32;
  const int row = warp * 16 + (lane / 8 % 2) * 8 + lane % 8;
#pragma unroll
  for (int j = 0; j < N / 16; ++j) {
    const int piece = 2 * j + lane / 16;
    const uint32_t at = hidden + piece / 8 * kBlockBytes + row * 128 + ((piece % 8) ^ (row % 8)) * 16;
    const float* v = acc + 8 * j;
    hopper::store_matrices(at, pack(v[0], v[1], T()), pack(v[2], v[3], T()), pack(v[4], v[5], T()), pack(v[6], v[7], T()));
  }
}

template <int N, typename T, bool kForward>
__device__ void hidden_link(
    const Chain& chain, const Link& link, int64_t group, uint32_t hidden, uint32_t inputs, Ring& ring) {
  const int thread = threadIdx.x % kWarpgroup, name = 1 + threadIdx.x / kWarpgroup;
  uint32_t* const signs = chain.signs == nullptr
                              ? nullptr
                              : chain.signs + ((group * chain.saved_blocks + link.slot) * kWarpgroup + thread * (N / 64));
  uint32_t sign[N / 64];
  if (!kForward) {
#pragma unroll
    for (int w = 0; w < N / 64; ++w) sign[w] = signs[w];
  }
  float acc[N / 2];
#pragma unroll
  for (int g = 0; g < N / 8; ++g) {
    float2 b = make_float2(0, 0);
    if (kForward) b = *reinterpret_cast<const float2*>(chain.biases + link.bias + 2 * (threadIdx.x % 4) + 8 * g);
    acc[4 * g] = acc[4 * g + 2] = b.x;
    acc[4 * g + 1] = acc[4 * g + 3] = b.y;
  }
  product<N, T>(acc, link, hidden, inputs, ring);
  if (kForward) {
#pragma unroll
    for (int w = 0; w < N / 64; ++w) sign[w] = 0;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      sign[i / 32] = __funnelshift_l(__float_as_uint(0.0f - acc[i]), sign[i / 32], 1);  // takes in whether it is > 0
      asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(acc[i]) : "f"(acc[i]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) acc[i] = (sign[i / 32] >> (31 - i % 32)) & 1 ? acc[i] : 0.0f;
  }
  // The products have read the hidden blocks; wait until the bulk store of the results before has read them, too.
  if (thread == 0) hopper::wait_for_stores_to_read();
  hopper::sync_named(name, kWarpgroup);
  put_hidden<N, T>(acc, hidden);
  hopper::show_to_async();
  hopper::sync_named(name, kWarpgroup);
  if (chain.saved != nullptr && thread == 0)
    hopper::store_bulk(
        static_cast<char*>(chain.saved) + (group * chain.saved_blocks + link.slot) * kBlockBytes, hidden,
        N / 64 * kBlockBytes);
  if (kForward && signs != nullptr) {
#pragma unroll
    for (int w = 0; w < N / 64; ++w) signs[w] = sign[w];
  }
}

template <int N, typename T, bool kForward>
__device__ void head_link(
    const Chain& chain, const Link& link, int64_t group, int64_t n, uint32_t hidden, uint32_t inputs, Ring& ring) {
  float acc[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) acc[i] = 0;
  product<N, T>(acc, link, hidden, inputs, ring);
  const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    const int column = i / 4 * 8 + 2 * (lane % 4) + i % 2;
    const int64_t row = group * kGroupRows + warp * 16 + (i / 2 % 2) * 8 + lane / 4;
    if (column >= link.outputs || row >= n) continue;
    float* const y = chain.y + row * chain.y_columns + link.slot + column;  // no other thread's
    if (kForward) acc[i] += chain.biases[link.bias + column];
    *y = link.adds ? *y + acc[i] : acc[i];
  }
}

template <typename T, bool kForward>
__global__ void __launch_bounds__(kChainThreads, 1) chain_kernel(const Chain chain) {
  extern __shared__ __align__(1024) char shared[];
  __shared__ Link links[kMaxLayers];
  __shared__ __align__(8) uint64_t barriers[2 * 4 + kGroups];
  const uint32_t base = hopper::shared_address(shared), first_barrier = hopper::shared_address(barriers);
  const uint32_t input_bytes = chain.input_blocks * kBlockBytes;
  Ring ring{
      base + kGroups * (kHiddenBlocks * kBlockBytes + input_bytes), first_barrier, first_barrier + 8 * 4, chain.stages};
  const uint32_t inputs_full = first_barrier + 8 * 8;
  if (threadIdx.x == 0) {
    for (int i = 0; i < chain.stages; ++i) {
      hopper::init_barrier(ring.full + 8 * i, 1);
      hopper::init_barrier(ring.empty + 8 * i, kGroups * kWarpgroup / 32);
    }
    for (int i = 0; i < kGroups; ++i) hopper::init_barrier(inputs_full + 8 * i, 1);
    hopper::publish_barriers();
  }
  for (int i = threadIdx.x; i < chain.n_links * int(sizeof(Link) / 4); i += kChainThreads)
    reinterpret_cast<int*>(links)[i] = reinterpret_cast<const int*>(chain.links)[i];
  __syncthreads();

  int64_t n = chain.n;
  if (chain.count != nullptr) n = min(n, int64_t(max(0, *chain.count)));
  const int64_t pairs = (n + kGroups * kGroupRows - 1) / (kGroups * kGroupRows);
  const int warpgroup = threadIdx.x / kWarpgroup;
  if (warpgroup == kGroups) {
    hopper::give_registers<24>();
    for (int64_t pair = blockIdx.x; pair < pairs && threadIdx.x % kWarpgroup == 0; pair += gridDim.x) {
      const char* from = static_cast<const char*>(chain.weights);
      for (int l = 0; l < chain.n_links; ++l) {
        const int blocks = links[l].hidden_blocks + links[l].input_blocks, at_once = blocks_per_stage(links[l].width);
        for (int i = 0; i < blocks; i += at_once) {
          const uint32_t bytes = 2 * links[l].width * hopper::kBlockColumns * min(at_once, blocks - i);
          hopper::wait_for(ring.empty + 8 * ring.at, ring.parity ^ 1);
          hopper::expect_bytes(ring.full + 8 * ring.at, bytes);
          hopper::load_bulk(ring.stage(), from, bytes, ring.full + 8 * ring.at);
          from += bytes;
          ring.advance();
        }
      }
    }
  } else {
    hopper::take_registers<240>();
    const uint32_t hidden = base + warpgroup * kHiddenBlocks * kBlockBytes;
    const uint32_t inputs = base + kGroups * kHiddenBlocks * kBlockBytes + warpgroup * input_bytes;
    const uint32_t full = inputs_full + 8 * warpgroup;
    const bool leads = threadIdx.x % kWarpgroup == 0;
    const auto bring_inputs = [&](int64_t pair) {
      if (!leads || pair >= pairs) return;
      hopper::expect_bytes(full, input_bytes);
      hopper::load_bulk(
          inputs, static_cast<const char*>(chain.inputs) + (pair * kGroups + warpgroup) * input_bytes, input_bytes, full);
    };
    int last_use = 0;
    for (int l = 0; l < chain.n_links; ++l)
      if (links[l].input_blocks > 0) last_use = l;
    uint32_t parity = 0;
    bring_inputs(blockIdx.x);
    for (int64_t pair = blockIdx.x; pair < pairs; pair += gridDim.x) {
      const int64_t group = pair * kGroups + warpgroup;
      hopper::wait_for(full, parity);
      parity ^= 1;
      for (int l = 0; l < chain.n_links; ++l) {
        const Link link = links[l];
        if (link.outputs > 0) {
          switch (link.width) {
            case 8: head_link<8, T, kForward>(chain, link, group, n, hidden, inputs, ring); break;
            case 64: head_link<64, T, kForward>(chain, link, group, n, hidden, inputs, ring); break;
            case 128: head_link<128, T, kForward>(chain, link, group, n, hidden, inputs, ring); break;
            default: head_link<256, T, kForward>(chain, link, group, n, hidden, inputs, ring);
          }
        } else {
          switch (link.width) {
            case 64: hidden_link<64, T, kForward>(chain, link, group, hidden, inputs, ring); break;
            case 128: hidden_link<128, T, kForward>(chain, link, group, hidden, inputs, ring); break;
            default: hidden_link<256, T, kForward>(chain, link, group, hidden, inputs, ring);
          }
        }
        if (l == last_use) {  // of all warps: their products are done
          hopper::sync_named(1 + warpgroup, kWarpgroup);
          bring_inputs(pair + gridDim.x);
        }
      }
    }
    if (leads) hopper::wait_for_stores();
    if (chain.y == nullptr) return;
    // Rows that do not count have outputs, or gradients, of 0.
    const int64_t begin = n * chain.y_columns, end = chain.n * chain.y_columns;
    for (int64_t i = begin + int64_t(blockIdx.x) * kGroups * kWarpgroup + threadIdx.x; i < end;
         i += int64_t(gridDim.x) * kGroups * kWarpgroup)
      chain.y[i] = 0;
  }
}

#else

template <typename T, bool kForward>
__global__ void chain_kernel(const Chain) {
  __trap();  // an error is better than results that nothing wrote
}

#endif

template <typename T>
__global__ void gather_kernel(const float* source, const int* index, int64_t n, T* to) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) to[i] = index[i] < 0 ? T(0.0f) : T(source[index[i]]);
}

int multiprocessors() {
  int device = 0, count = 0;
  STD_CUDA_CHECK(cudaGetDevice(&device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

Tensor gathered(const Launch& launch, const Tensor& parameters, const Tensor& index, ScalarType dtype) {
  Tensor to = empty(parameters, {index.size(0)}, dtype);
  if (index.size(0) == 0) return to;
  const auto gather = [&](auto type) {
    using T = decltype(type);
    gather_kernel<T><<<blocks(index.size(0)), kThreads, 0, launch.stream>>>(
        data<float>(parameters), data<int>(index), index.size(0), static_cast<T*>(to.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  };
  if (dtype == ScalarType::Float) gather(float());
  else for_type(dtype, gather);
  return to;
}

template <bool kForward>
void run(const Launch& launch, Chain chain, ScalarType dtype) {
  const int64_t pairs = (chain.n + kGroups * kGroupRows - 1) / (kGroups * kGroupRows);
  const size_t kept = kGroups * (kHiddenBlocks + chain.input_blocks) * kBlockBytes;
  constexpr size_t kMost = 224 * 1024;  // of shared memory; the rest is static
  chain.stages = int(std::min(size_t(4), (kMost - kept) / kStageBytes));
  STD_TORCH_CHECK(chain.stages >= 2, "inputs: too many columns");
  for_type(dtype, [&](auto type) {
    const auto kernel = chain_kernel<decltype(type), kForward>;
    const size_t bytes = kept + chain.stages * kStageBytes;
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kMost)));
    const unsigned int grid = unsigned(std::max(int64_t(1), std::min(pairs, int64_t(multiprocessors()))));
    kernel<<<grid, kChainThreads, bytes, launch.stream>>>(chain);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

const int* counter(const std::optional<Tensor>& count) { return count ? data<int>(*count) : nullptr; }

void check_shared(const Tensor& parameters, const std::optional<Tensor>& count, const Tensor& links, ScalarType dtype) {
  check_float(parameters, "parameters");
  if (count) check_int(*count, "count");
  STD_TORCH_CHECK(links.size(0) <= kMaxLayers, "links: expected at most ", kMaxLayers, " layers, got ", links.size(0));
  STD_TORCH_CHECK(dtype == ScalarType::BFloat16 || dtype == ScalarType::Half, "dtype: expected bfloat16 or float16");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& x, const std::optional<Tensor>& x2, const std::optional<Tensor>& index2, const Tensor& parameters,
    const std::optional<Tensor>& count, const Tensor& links, const Tensor& index, const Tensor& bias_index, const Tensor&,
    const Tensor&, const Tensor&, const Tensor&, int64_t n_outputs, int64_t saved_blocks, int64_t, bool save,
    ScalarType dtype, int64_t frequencies, bool include_input, double scale, int64_t frequencies2, bool include_input2,
    double scale2) {
  check_shared(parameters, count, links, dtype);
  check_float(x, "x");
  if (x2) check_float(*x2, "x2");
  if (index2) check_int(*index2, "index2");
  const Launch launch(x);
  const int64_t n = x.size(0), groups = (n + 2 * kGroupRows - 1) / (2 * kGroupRows) * 2;
  const Input input = input_of(x, std::nullopt, frequencies, include_input, scale);
  const Input input2 = x2 ? input_of(*x2, index2, frequencies2, include_input2, scale2) : Input{};
  const int64_t first = (input.columns + 63) / 64, input_blocks = first + (input2.columns + 63) / 64;
  Tensor inputs = empty(x, {groups, input_blocks, kBlockBytes / 2}, dtype);
  Tensor y = empty(x, {n, n_outputs}, ScalarType::Float);
  const int64_t kept = save ? groups : 0;
  Tensor hidden = empty(x, {kept, saved_blocks, kBlockBytes / 2}, dtype);
  Tensor signs = empty(x, {kept, saved_blocks, kWarpgroup}, ScalarType::Int);
  if (n == 0) return {y, inputs, hidden, signs};
  pack_rows(launch, input, n, counter(count), inputs, 0);
  if (x2) pack_rows(launch, input2, n, counter(count), inputs, first);
  const Tensor weights = gathered(launch, parameters, index, dtype);
  const Tensor biases = gathered(launch, parameters, bias_index, ScalarType::Float);
  Chain chain{};
  chain.links = reinterpret_cast<const Link*>(data<int>(links));
  chain.n_links = int(links.size(0));
  chain.weights = weights.const_data_ptr();
  chain.biases = data<float>(biases);
  chain.inputs = inputs.const_data_ptr();
  chain.input_blocks = int(input_blocks);
  chain.saved = save ? hidden.mutable_data_ptr() : nullptr;
  chain.saved_blocks = int(saved_blocks);
  chain.signs = save ? reinterpret_cast<uint32_t*>(mutable_data<int>(signs)) : nullptr;
  chain.y = mutable_data<float>(y);
  chain.y_columns = int(n_outputs);
  chain.count = counter(count);
  chain.n = n;
  run<true>(launch, chain, dtype);
  return {y, inputs, hidden, signs};
}

std::tuple<Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& inputs, const Tensor& hidden, const Tensor& signs, const Tensor& parameters,
    const std::optional<Tensor>& count, const Tensor& links, const Tensor& index, const Tensor& items,
    const Tensor& sources, int64_t n_pieces, int64_t input_columns, ScalarType dtype) {
  check_shared(parameters, count, links, dtype);
  check_float(grad, "grad");
  const Launch launch(grad);
  const int64_t n = grad.size(0), groups = hidden.size(0), saved_blocks = hidden.size(1);
  STD_TORCH_CHECK(groups * kGroupRows >= n, "hidden: the forward pass has not saved it");
  Tensor outer = empty(grad, {groups, (grad.size(1) + 63) / 64, kBlockBytes / 2}, dtype);
  Tensor inner = empty(grad, {groups, saved_blocks, kBlockBytes / 2}, dtype);
  Tensor grad_input = empty(grad, {n, input_columns}, ScalarType::Float);
  if (n == 0) return {torch::stable::fill_(empty(grad, {parameters.size(0)}, ScalarType::Float), 0.0), grad_input};
  pack_rows(launch, input_of(grad, std::nullopt, 0, false, 1.0), n, counter(count), outer, 0);
  const Tensor weights = gathered(launch, parameters, index, dtype);
  Chain chain{};
  chain.links = reinterpret_cast<const Link*>(data<int>(links));
  chain.n_links = int(links.size(0));
  chain.weights = weights.const_data_ptr();
  chain.inputs = outer.const_data_ptr();
  chain.input_blocks = int(outer.size(1));
  chain.saved = inner.mutable_data_ptr();
  chain.saved_blocks = int(saved_blocks);
  chain.signs = reinterpret_cast<uint32_t*>(const_cast<int*>(data<int>(signs)));
  chain.y = input_columns > 0 ? mutable_data<float>(grad_input) : nullptr;
  chain.y_columns = int(input_columns);
  chain.count = counter(count);
  chain.n = n;
  run<false>(launch, chain, dtype);
  return {weight_gradients(launch, outer, inner, inputs, hidden, items, n_pieces, sources, counter(count), n), grad_input};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightning_nerf, CUDA, m) {
  m.impl("wide_mlp", TORCH_BOX(&forward));
  m.impl("wide_mlp_backward", TORCH_BOX(&backward));
}

}  // namespace lightning_nerf::wide_mlp
