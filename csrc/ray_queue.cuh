// Rays that end early, and the lanes of a warp that follow them: where a ray has become opaque or run out of samples its
// lanes take the next one that no warp has taken. Once there are none, the rays that are left get more lanes each, so that a
// a few long rays do not delay the others.
#pragma once
#include "host_device.cuh"

namespace lightning_nerf::instant_ngp {

constexpr int kBatch = 8;  // rays that a warp takes at once

struct RaySamples {
  const float* origins;     // [R, 3]
  const float* directions;  // [R, 3]
  const float* t_starts;    // [N]
  const float* t_ends;      // [N]
  const int32_t* offsets;   // [R + 1]
  const float* to_unit;     // [2, 3] factor and summand that take world space to the unit cube
  int64_t n_rays, n;
  int contraction;      // see contract.cuh; behind to_unit
  float largest_depth;  // optical depth behind which samples are not evaluated
  int32_t* taken;       // [1] rays that warps have taken, 0 before
};

// What neighboring lanes, `width` of them, know of their ray.
struct Slot {
  int32_t ray = -1;  // -1: none
  int32_t next = 0, end = 0;
  float origin[3], direction[3];  // in the unit cube
  float depth = 0.0f;             // optical depth in front of sample `next`

  __device__ __forceinline__ bool idle() const { return next >= end; }

  __device__ __forceinline__ void copy_from(int lane) {
    ray = __shfl_sync(kFullWarp, ray, lane);
    next = __shfl_sync(kFullWarp, next, lane);
    end = __shfl_sync(kFullWarp, end, lane);
    depth = __shfl_sync(kFullWarp, depth, lane);
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      origin[a] = __shfl_sync(kFullWarp, origin[a], lane);
      direction[a] = __shfl_sync(kFullWarp, direction[a], lane);
    }
  }
};

// Hands rays that have samples to idle slots. All lanes of the warp call its functions.
template <int Width>
struct Queue {
  const RaySamples& s;
  int width = Width;
  bool exhausted = false;
  unsigned waiting = 0u;                  // rays of the batch in hand
  int32_t first = 0, begin = 0, end = 0;  // this lane's ray of the batch: first + lane

  // Calls skip(ray) for rays without samples; finish(slot) and start(slot), by the lanes of a slot, for rays that are done
  // and that begin; and by all lanes leave() before and arrive(slot, lane) after slots have moved, `lane` being the first
  // of those that the slot had.
  template <typename Skip, typename Finish, typename Start, typename Leave, typename Arrive>
  __device__ __forceinline__ void refill(
      Slot& slot, const Skip& skip, const Finish& finish, const Start& start, const Leave& leave, const Arrive& arrive) {
    const int lane = threadIdx.x & 31;
    unsigned idle = __ballot_sync(kFullWarp, slot.idle());
    if (idle == 0u) return;
    if (slot.idle() && slot.ray >= 0) {
      finish(slot);
      slot.ray = -1;
    }
    __syncwarp();
    if (exhausted && waiting == 0u) {
      widen(slot, ~idle, leave, arrive);
      return;
    }
    bool taken = false;
    while (idle != 0u && (waiting != 0u || fetch(skip))) {
#pragma unroll
      for (int i = 0; i < 32 / Width; ++i) {
        if ((idle >> (i * Width) & 1u) == 0u || waiting == 0u) continue;
        const int bit = __ffs(waiting) - 1;
        waiting &= waiting - 1;
        idle &= ~(((1u << Width) - 1u) << (i * Width));
        const int32_t b = __shfl_sync(kFullWarp, begin, bit), e = __shfl_sync(kFullWarp, end, bit);
        if (lane / Width == i) {
          slot.ray = first + bit;
          slot.next = b;
          slot.end = e;
          taken = true;
        }
      }
    }
    if (!taken) return;
    slot.depth = 0.0f;
    const int64_t ray = slot.ray;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const float scale = s.to_unit[a];
      slot.origin[a] = fmaf(s.origins[3 * ray + a], scale, s.to_unit[3 + a]);
      slot.direction[a] = s.directions[3 * ray + a] * scale;
    }
    start(slot);
  }

  // Takes the next batch; false where there is none. It may hold no ray with samples.
  template <typename Skip>
  __device__ __forceinline__ bool fetch(const Skip& skip) {
    if (exhausted) return false;
    const int lane = threadIdx.x & 31;
    if (lane == 0) first = atomicAdd(s.taken, kBatch);
    first = __shfl_sync(kFullWarp, first, 0);
    exhausted = first >= s.n_rays;
    if (exhausted) return false;
    const int64_t ray = int64_t(first) + lane;
    const bool exists = lane < kBatch && ray < s.n_rays;
    begin = exists ? int32_t(min(int64_t(s.offsets[ray]), s.n)) : 0;
    end = exists ? int32_t(min(int64_t(s.offsets[ray + 1]), s.n)) : 0;
    if (exists && end <= begin) skip(ray);
    waiting = __ballot_sync(kFullWarp, end > begin);
    return true;
  }

  // With half of the slots busy or fewer, gives each busy one twice the lanes or more.
  template <typename Leave, typename Arrive>
  __device__ __forceinline__ void widen(Slot& slot, unsigned busy, const Leave& leave, const Arrive& arrive) {
    const int count = __popc(busy) / width;
    const int wider = count <= 1 ? 32 : count == 2 ? 16 : count <= 4 ? 8 : width;
    if (busy == 0u || wider <= width) return;
    int source = 0;  // the first lane of the busy slot that comes here; the last busy one again where there are fewer
    for (int i = 0; i <= (threadIdx.x & 31) / wider && busy != 0u; ++i) {
      source = __ffs(busy) - 1;
      busy &= ~(((1u << width) - 1u) << source);
    }
    const bool spare = (threadIdx.x & 31) / wider >= count;
    leave();
    slot.copy_from(source);
    if (spare) slot.ray = -1, slot.next = slot.end;
    width = wider;
    arrive(slot, source);
  }
};

}  // namespace lightning_nerf::instant_ngp
