// The weights' gradients of wide perceptrons on Hopper: products dZ^T H, summed over all rows.
//
// Each block of threads adds up one item (a piece of one layer's gradient, up to 128 x 256) over its share of the groups; a
// second kernel adds the shares, always in the same order. Both operands are stored row by row, so the products read them
// transposed. The sums of dZ, the biases' gradients, are products with ones.
#include "wide_mlp.h"

#include "wide_mlp.cuh"

namespace lightning_nerf::wide_mlp {

namespace {

constexpr int kWarpgroup = 128;
constexpr int kItemThreads = 3 * kWarpgroup;  // two multiply, one brings operands
constexpr int kStages = 4;
constexpr uint32_t kStageBytes = (2 + kHiddenBlocks) * kBlockBytes;
constexpr uint32_t kOnesBytes = 2048;

struct Operands {
  const void* of[4];  // dZ of the heads, dZ of hidden layers, inputs, hidden layers
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int N, typename T>
__device__ void add_up(
    const Item& item, int64_t n_groups, uint32_t stages, uint32_t full, uint32_t empty, uint32_t ones, float* piece) {
  const int warpgroup = threadIdx.x / kWarpgroup;
  float acc[N / 2], sums[4];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) acc[i] = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] = 0;
  int at = 0, used = 0;
  uint32_t parity = 0;
  for (int64_t g = 0; g < n_groups; ++g) {
    hopper::wait_for(full + 8 * at, parity);
    const uint32_t a = stages + at * kStageBytes + warpgroup * kBlockBytes, b = stages + at * kStageBytes + 2 * kBlockBytes;
    hopper::begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      hopper::multiply<N, T, 1>(acc, hopper::mn_major(a + 2048 * k), hopper::mn_major(b + 2048 * k));
      hopper::multiply<8, T, 1>(sums, hopper::mn_major(a + 2048 * k), hopper::mn_major(ones));
    }
    hopper::commit_products();
    hopper::wait_for_products<1>();
    if (g > 0 && threadIdx.x % 32 == 0) hopper::arrive(empty + 8 * used);
    used = at;
    if (++at == kStages) at = 0, parity ^= 1;
  }
  hopper::wait_for_products<0>();
  if (warpgroup >= item.a_blocks) return;  // it multiplied what was there, as a branch around products would cost more
  const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32;
  const int row = warpgroup * kGroupRows + warp * 16 + lane / 4;
#pragma unroll
  for (int g = 0; g < N / 8; ++g) {
    float* const to = piece + row * kMaxOutputs + 8 * g + 2 * (lane % 4);
    *reinterpret_cast<float2*>(to) = make_float2(acc[4 * g], acc[4 * g + 1]);
    *reinterpret_cast<float2*>(to + 8 * kMaxOutputs) = make_float2(acc[4 * g + 2], acc[4 * g + 3]);
  }
  if (lane % 4 == 0) {
    piece[kItemRows * kMaxOutputs + row] = sums[0];
    piece[kItemRows * kMaxOutputs + row + 8] = sums[2];
  }
}

template <typename T>
__global__ void __launch_bounds__(kItemThreads, 1)
    item_kernel(const Operands operands, const Item* items, int n_items, const int* count, int64_t n, float* pieces) {
  extern __shared__ __align__(1024) char shared[];
  __shared__ Item item;
  __shared__ __align__(8) uint64_t barriers[2 * kStages];
  const uint32_t stages = hopper::shared_address(shared), ones = stages + kStages * kStageBytes;
  const uint32_t full = hopper::shared_address(barriers), empty = full + 8 * kStages;
  for (int i = threadIdx.x; i < int(kOnesBytes / sizeof(T)); i += kItemThreads)
    reinterpret_cast<T*>(shared + kStages * kStageBytes)[i] = T(1.0f);
  hopper::show_to_async();
  if (threadIdx.x == 0) {
    int mine = 0;
    while (mine + 1 < n_items && items[mine + 1].first <= int(blockIdx.x)) ++mine;
    item = items[mine];
    for (int i = 0; i < kStages; ++i) {
      hopper::init_barrier(full + 8 * i, 1);
      hopper::init_barrier(empty + 8 * i, 2 * kWarpgroup / 32);
    }
    hopper::publish_barriers();
  }
  __syncthreads();
  if (count != nullptr) n = min(n, int64_t(max(0, *count)));
  const int64_t all = (n + kGroupRows - 1) / kGroupRows, share = int(blockIdx.x) - item.first;
  const int64_t begin = all * share / item.splits, end = all * (share + 1) / item.splits;
  if (threadIdx.x / kWarpgroup == 2) {
    hopper::give_registers<24>();
    const char* const a = static_cast<const char*>(operands.of[item.a_kind]) + item.a_slot * kBlockBytes;
    const char* const b = static_cast<const char*>(operands.of[item.b_kind]) + item.b_slot * kBlockBytes;
    const uint32_t a_bytes = item.a_blocks * kBlockBytes, b_bytes = item.b_blocks * kBlockBytes;
    int at = 0;
    uint32_t parity = 1;
    for (int64_t g = begin; g < end && threadIdx.x % kWarpgroup == 0; ++g) {
      hopper::wait_for(empty + 8 * at, parity);
      hopper::expect_bytes(full + 8 * at, a_bytes + b_bytes);
      const uint32_t to = stages + at * kStageBytes;
      hopper::load_bulk(to, a + g * item.a_stride * kBlockBytes, a_bytes, full + 8 * at);
      hopper::load_bulk(to + 2 * kBlockBytes, b + g * item.b_stride * kBlockBytes, b_bytes, full + 8 * at);
      if (++at == kStages) at = 0, parity ^= 1;
    }
  } else {
    hopper::take_registers<240>();
    float* const piece = pieces + int64_t(blockIdx.x) * kPieceSize;
    switch (item.b_blocks) {
      case 1: add_up<64, T>(item, end - begin, stages, full, empty, ones, piece); break;
      case 2: add_up<128, T>(item, end - begin, stages, full, empty, ones, piece); break;
      default: add_up<256, T>(item, end - begin, stages, full, empty, ones, piece);
    }
  }
}

#else

template <typename T>
__global__ void item_kernel(const Operands, const Item*, int, const int*, int64_t, float*) {
  __trap();  // see chain_kernel
}

#endif

// Each gradient is the sum of what `source[1]` blocks of threads found for it, in the pieces from `source[0]` on.
__global__ void sum_kernel(const float* pieces, const int2* sources, int64_t n, float* sums) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const int2 source = sources[i];
  float sum = 0;
  for (int s = 0; s < source.y; ++s) sum += pieces[int64_t(s) * kPieceSize + source.x];
  sums[i] = sum;
}

}  // namespace

Tensor weight_gradients(
    const Launch& launch, const Tensor& outer, const Tensor& inner, const Tensor& inputs, const Tensor& hidden,
    const Tensor& items, int64_t n_pieces, const Tensor& sources, const int* count, int64_t n) {
  Tensor sums = empty(outer, {sources.size(0)}, ScalarType::Float);
  Tensor pieces = empty(outer, {n_pieces, kPieceSize}, ScalarType::Float);
  const Operands operands{
      {outer.const_data_ptr(), inner.const_data_ptr(), inputs.const_data_ptr(), hidden.const_data_ptr()}};
  const auto launch_items = [&](auto type) {
    const auto kernel = item_kernel<decltype(type)>;
    constexpr int kBytes = kStages * kStageBytes + kOnesBytes;
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    kernel<<<unsigned(n_pieces), kItemThreads, kBytes, launch.stream>>>(
        operands, reinterpret_cast<const Item*>(data<int>(items)), int(items.size(0)), count, n,
        mutable_data<float>(pieces));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  };
  if (outer.scalar_type() == ScalarType::BFloat16) launch_items(__nv_bfloat16());
  else launch_items(__half());
  sum_kernel<<<blocks(sources.size(0)), kThreads, 0, launch.stream>>>(
      data<float>(pieces), reinterpret_cast<const int2*>(data<int>(sources)), sources.size(0), mutable_data<float>(sums));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return sums;
}

}  // namespace lightning_nerf::wide_mlp
