// The march on a GPU. A warp takes 16 rays and cuts each into segments of 16 samples:
//
// - Setup, a lane per ray: the samples within the bounding box of what is occupied.
// - Coarse, a lane per end of a segment: segments whose ends lie in empty blocks of cells, with only empty blocks between
//   them, have no samples. A coordinate's cell is monotone along a ray (see march.cuh), so the blocks between two samples are
//   those of the box that the two blocks span: that is exact, rounding included.
// - Fine, a lane per sample of the segments that are left: its cell's bit.
//
// Each stage shares its work among all lanes, whoever's ray it is. What is found is a list of segments and their samples as
// 16 bits, in order: the second kernel expands it. Rays with very many lattice points are walked instead, see march.cuh.
#pragma once
#include "march.cuh"

namespace lightning_nerf::march {

constexpr int kWarps = 4;           // of a block
constexpr int kRays = 16;           // of a warp
constexpr int kSegment = 16;        // samples: half a warp
constexpr int kMaxSegments = 2048;  // of a ray; 11 bits
constexpr int kQueue = 128;         // segments that wait for the fine stage, at least 31 more than it starts at
constexpr int kPlan = 64;           // segments with samples per ray that a group may have, on average

// The grid as bits. Blocks of 4 x 4 x 4 cells are 64 bits, so that neighbors in space are neighbors in memory; coarse
// blocks of 2^shift cells per axis, at most 32 along z, are a bit each: few enough for shared memory. A coarse block is
// occupied if it is in any bin.
struct Bits {
  uint32_t* cells;   // [n_bins, L, blocks, 2]
  uint32_t* coarse;  // [L, coarse_x, coarse_y], a bit for each z
  int blocks[3], coarse_x, coarse_y, shift, n_coarse;
  int words_of_bin;  // in `cells`
};

// A warp per word of `coarse` and bin, which is blockIdx.y. With several bins `coarse` must be 0 before.
__global__ void bits_kernel(
    const uint8_t* __restrict__ occupancy,  // [n_bins, L, X, Y, Z]
    int64_t cells_of_bin, int x_size, int y_size, int z_size,
    bool whole_words,  // Z and the address of `occupancy` are multiples of 4
    Bits bits) {
  occupancy += blockIdx.y * cells_of_bin;
  bits.cells += blockIdx.y * int64_t(bits.words_of_bin);
  const int word = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x & 31;
  if (word >= bits.n_coarse) return;
  const int level = word / (bits.coarse_x * bits.coarse_y);
  const int x_coarse = word / bits.coarse_y % bits.coarse_x, y_coarse = word % bits.coarse_y;
  const int rows = 1 << (bits.shift - 2);  // blocks per coarse block and axis
  uint32_t occupied = 0;
  for (int row = 0; row < rows * rows; ++row) {
    const int bx = x_coarse * rows + row / rows, by = y_coarse * rows + row % rows;
    if (bx >= bits.blocks[0] || by >= bits.blocks[1]) continue;
    for (int bz = lane; bz < bits.blocks[2]; bz += 32) {
      uint32_t half[2] = {0, 0};
      for (int i = 0; i < 16; ++i) {
        const int x = 4 * bx + i / 4, y = 4 * by + i % 4;
        if (x >= x_size || y >= y_size) continue;
        const uint8_t* const cells = occupancy + ((int64_t(level) * x_size + x) * y_size + y) * z_size + 4 * bz;
        uint32_t four = 0;
        if (whole_words) {
          four = *reinterpret_cast<const uint32_t*>(cells);
        } else {
          for (int z = 0; z < 4 && 4 * bz + z < z_size; ++z) four |= uint32_t(cells[z]) << (8 * z);
        }
        half[i / 8] |= (four * 0x01020408u >> 24) << (4 * (i % 8));  // bit z is byte z, each 0 or 1
      }
      const int64_t block = ((int64_t(level) * bits.blocks[0] + bx) * bits.blocks[1] + by) * bits.blocks[2] + bz;
      bits.cells[2 * block] = half[0];
      bits.cells[2 * block + 1] = half[1];
      if (half[0] | half[1]) occupied |= 1u << (bz >> (bits.shift - 2));
    }
  }
  occupied = __reduce_or_sync(kFullWarp, occupied);
  if (lane != 0) return;
  if (gridDim.y == 1) {
    bits.coarse[word] = occupied;
  } else if (occupied != 0) {
    atomicOr(&bits.coarse[word], occupied);
  }
}

// Truncates x >= 0 by adding 2^23, rounded down: conversions have a fraction of the adders' rate. Infinity becomes `most`.
__device__ inline int whole(float x, int most) {
  return min(__float_as_int(__fadd_rd(x, 8388608.0f)), 0x4B000000 + most) - 0x4B000000;
}

// k >= 0 as a double, likewise: 2^52 + k, of which k is the low word, less 2^52.
__device__ inline double exact(int k) { return __hiloint2double(0x43300000, k) - 4503599627370496.0; }

struct Extent {
  int low[3], high[3];  // coarse blocks of the outermost level, inclusive, that hold all samples; low > high: none
};

// Copies the coarse bits to shared memory. Called by the whole block.
__device__ inline Extent load_coarse(const Arguments& m, const Bits& bits, uint32_t* coarse) {
  __shared__ int extent[5];  // least and greatest x, least and greatest y, z as bits
  if (threadIdx.x < 5) extent[threadIdx.x] = threadIdx.x < 2 ? INT32_MAX : threadIdx.x < 4 ? -1 : 0;
  __syncthreads();
  const int outermost = bits.n_coarse - bits.coarse_x * bits.coarse_y, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  for (int i = threadIdx.x; i < outermost; i += blockDim.x) coarse[i] = bits.coarse[i];
  int x_low = INT32_MAX, y_low = INT32_MAX, x_high = -1, y_high = -1, z = 0;
  for (int x = warp; x < bits.coarse_x; x += kWarps) {
    const int row = outermost + x * bits.coarse_y;
    for (int y = lane; y < bits.coarse_y; y += 32) {
      const uint32_t word = bits.coarse[row + y];
      coarse[row + y] = word;
      if (word == 0) continue;
      x_low = min(x_low, x), x_high = max(x_high, x), y_low = min(y_low, y), y_high = max(y_high, y), z |= int(word);
    }
  }
  __syncwarp();
  x_low = __reduce_min_sync(kFullWarp, x_low), x_high = __reduce_max_sync(kFullWarp, x_high);
  y_low = __reduce_min_sync(kFullWarp, y_low), y_high = __reduce_max_sync(kFullWarp, y_high);
  z = int(__reduce_or_sync(kFullWarp, unsigned(z)));
  if (lane == 0) {
    atomicMin(&extent[0], x_low), atomicMin(&extent[1], y_low);
    atomicMax(&extent[2], x_high), atomicMax(&extent[3], y_high);
    atomicOr(&extent[4], z);
  }
  __syncthreads();
  Extent e = {{extent[0], extent[1], __ffs(extent[4]) - 1}, {extent[2], extent[3], 31 - __clz(extent[4])}};
  if (extent[4] == 0) e.low[2] = INT32_MAX;
  if (m.levels > 1) {  // and what the finer levels cover
    for (int a = 0; a < 3; ++a) {
      e.low[a] = min(e.low[a], whole(0.5f * m.half_resolution[a], m.resolution[a] - 1) >> bits.shift);
      e.high[a] = max(e.high[a], whole(1.5f * m.half_resolution[a], m.resolution[a] - 1) >> bits.shift);
    }
  }
  return e;
}

// A ray in shared memory.
struct alignas(16) Segmented {
  float origin[3], direction[3];
  double start, bend, bend_t;  // of its lattice
  int first, stop;             // samples: segment s begins at first + s * kSegment
  int first_word;              // of its bin, where there are bins
};

// kPlain, here and below: one level and a linear lattice, as most scenes have.
template <bool kPlain>
__device__ inline double middle_of(const Arguments& m, const Segmented& ray, int k) {
  return LatticeOf<kPlain>(m, ray.start, ray.bend, ray.bend_t).middle(exact(k));
}

// On which sides of the extent sample k lies: bit a for below on axis a, bit 3 + a for above.
template <bool kPlain>
__device__ inline unsigned sides(const Grid& grid, const Ray& ray, const Extent& extent, int shift, double middle) {
  const float t = float(middle);
  unsigned result = 0;
  for (int a = 0; a < 3; ++a) {
    float v = grid.unit(ray.origin[a], ray.direction[a], t, a);
    if (!kPlain)
      for (int level = 1; level < grid.m.levels; ++level) v *= 0.5f;
    const int block = whole(fmaxf((v + 1.0f) * grid.m.half_resolution[a], 0.0f), grid.m.resolution[a] - 1) >> shift;
    result |= unsigned(v < -1.0f || block < extent.low[a]) << a | unsigned(v > 1.0f || block > extent.high[a]) << (3 + a);
  }
  return result;
}

// Samples `first` to `stop`, outside of which there are none: where the ray enters and leaves the extent, which is guessed by
// division, and proved by all samples before, and all after, being on one side of it. False: too many for segments.
template <bool kPlain>
__device__ inline bool find_range(
    const Grid& grid, const Ray& ray, const LatticeOf<kPlain>& lattice, const Extent& extent, int shift, int& first,
    int& stop) {
  const double end = lattice.first(ray.far);
  if (!(0.0 < end)) return true;
  const Arguments& m = grid.m;
  const float size = kPlain ? 1.0f : float(1 << (m.levels - 1)), near = float(lattice.start);
  float enter = -INFINITY, leave = INFINITY;
  for (int a = 0; a < 3; ++a) {
    const int high = min((extent.high[a] + 1) << shift, m.resolution[a]);
    const float low_v = float(extent.low[a] << shift) * m.cell_size[a] - 1.0f, high_v = float(high) * m.cell_size[a] - 1.0f;
    const float t0 = (low_v * size * grid.half[a] + grid.center[a] - ray.origin[a]) * ray.inverse[a];
    const float t1 = (high_v * size * grid.half[a] + grid.center[a] - ray.origin[a]) * ray.inverse[a];
    enter = fmaxf(enter, fminf(t0, t1));
    leave = fminf(leave, fmaxf(t0, t1));
  }
  const bool misses = enter > leave;
  enter = fminf(fmaxf(enter, near), ray.far);
  leave = fminf(fmaxf(leave, near), ray.far);
  double a = lattice.guess(enter) - 2.0, b = lattice.guess(leave) + 3.0;
  if (misses) a = b = lattice.guess(0.5f * enter + 0.5f * leave);
  a = larger(0.0, smaller(a, end));
  b = larger(a, smaller(b, end));
  const auto at = [&](double k) { return sides<kPlain>(grid, ray, extent, shift, lattice.middle(k)); };
  if (a > 0.0 && !(at(0.0) & at(a - 1.0))) a = 0.0;
  if (b < end && !(at(b) & at(end - 1.0))) b = end;
  if (!(b < 2147000000.0) || !(b - a < double(kSegment * (kMaxSegments - 1)))) return false;
  first = int(a);
  stop = int(b);
  return true;
}

// The coarse block of a sample; outside of the grid, the outermost level's nearest.
struct CoarsePlace {
  int x, y, z, frame;  // frame: level and, per axis, the side of the next finer level's box (see Place)
};

template <bool kPlain>
__device__ inline CoarsePlace coarse_place(const Grid& grid, const Segmented& ray, int shift, int k) {
  const Arguments& m = grid.m;
  const float t = float(middle_of<kPlain>(m, ray, k));
  float v[3];
  for (int a = 0; a < 3; ++a) v[a] = grid.unit(ray.origin[a], ray.direction[a], t, a);
  int frame = 0;
  if (!kPlain) {
    int level = 0;
    while (level < m.levels - 1 && !(fabsf(v[0]) <= 1.0f && fabsf(v[1]) <= 1.0f && fabsf(v[2]) <= 1.0f)) {
      ++level;
      for (int a = 0; a < 3; ++a) v[a] *= 0.5f;
    }
    frame = level;
    for (int a = 0; a < 3; ++a) frame |= (1 + int(v[a] > 0.5f) - int(v[a] < -0.5f)) << (3 + 2 * a);
  }
  int block[3];
  for (int a = 0; a < 3; ++a)
    block[a] = whole(fmaxf((v[a] + 1.0f) * m.half_resolution[a], 0.0f), m.resolution[a] - 1) >> shift;
  return {block[0], block[1], block[2], frame};
}

// Is everything between two samples of a ray in one level?
__device__ inline bool one_level(int frame, int other) {
  if ((frame & 7) != (other & 7)) return false;
  if ((frame & 7) == 0) return true;
  for (int a = 0; a < 3; ++a) {
    const int side = frame >> (3 + 2 * a) & 3;
    if (side != 1 && side == (other >> (3 + 2 * a) & 3)) return true;
  }
  return false;
}

// Is sample k's cell occupied? Without branches, so that several lookups overlap. kBinned, here and below: rays have bins.
template <bool kPlain, bool kBinned>
__device__ inline bool occupied(const Grid& grid, const Bits& bits, const Segmented& ray, int k, bool wanted) {
  const Arguments& m = grid.m;
  const double middle = middle_of<kPlain>(m, ray, k);
  int cell[3], level = 0;
  if (kPlain) {
    const float t = float(middle);
    for (int a = 0; a < 3; ++a) {
      const float v = grid.unit(ray.origin[a], ray.direction[a], t, a);
      wanted &= fabsf(v) <= 1.0f;
      cell[a] = whole((v + 1.0f) * m.half_resolution[a], m.resolution[a] - 1);
    }
  } else {
    const Place place = grid.locate(ray.origin, ray.direction, middle);
    level = place.level();
    wanted &= level < m.levels;
    for (int a = 0; a < 3; ++a) cell[a] = place.cell(a);
  }
  const int row = (kPlain ? cell[0] >> 2 : level * bits.blocks[0] + (cell[0] >> 2)) * bits.blocks[1] + (cell[1] >> 2);
  int word = 2 * (row * bits.blocks[2] + (cell[2] >> 2)) + (cell[0] >> 1 & 1);
  if (kBinned) word += ray.first_word;
  const int bit = (cell[0] & 1) << 4 | (cell[1] & 3) << 2 | (cell[2] & 3);
  const uint32_t found = wanted ? __ldg(bits.cells + word) : 0;
  return found >> bit & 1;
}

// The walk, for rays that are not cut into segments. Rare: not inlined, so that others don't pay its registers.
__device__ __noinline__ int32_t walk_count(const Arguments& m, int64_t r) {
  CountSamples samples;
  walk(Grid(m), Ray(m, r), Lattice(m, r), samples);
  return samples.result();
}
__device__ __noinline__ void walk_write(const Arguments& m, int64_t r, int begin, int end, float* t_starts, float* t_ends) {
  const Lattice lattice(m, r);
  WriteSamples samples{lattice, begin, end, t_starts, t_ends};
  walk(Grid(m), Ray(m, r), lattice, samples);
}

// What the first kernel leaves for the second, per group of kRays rays.
struct Plan {
  uint32_t* segments;  // [groups, kRays * kPlan]: ray in its group << 27 | segment << 16 | samples
  int32_t* sizes;      // [groups], -1: the list is incomplete, rays must be walked
  int32_t* first;      // [R]
};

// Counts the samples found and lists their segments.
__device__ __forceinline__ void list_segments(
    const uint32_t* queue, const uint16_t* found, int n_queue, int* count, uint32_t* list, bool wanted, int& n_plan) {
  const int lane = threadIdx.x & 31;
#pragma unroll 1
  for (int q = lane; q < n_queue + lane; q += 32) {
    const uint32_t segment = q < n_queue ? queue[q] | found[q] : 0;
    const bool some = segment & 0xFFFFu;
    const unsigned with_samples = __ballot_sync(kFullWarp, some);
    if (some) {
      atomicAdd(count + (segment >> 27), __popc(segment & 0xFFFFu));
      const int place = n_plan + __popc(with_samples & ((1u << lane) - 1u));
      if (wanted && place < kRays * kPlan) list[place] = segment;
    }
    n_plan += __popc(with_samples);
  }
}

// Fine: the bits of the queued segments' samples.
template <bool kPlain, bool kBinned>
__device__ __forceinline__ void look_up(
    const Grid& grid, const Bits& bits, const Segmented* rays, const uint32_t* queue, int n_queue, uint16_t* found) {
  const int lane = threadIdx.x & 31;
  for (int q = 0; q < n_queue; q += 4) {
    bool hits[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t segment = queue[q + 2 * i + (lane >> 4)];
      const Segmented& ray = rays[segment >> 27];
      const int k = ray.first + int(segment >> 16 & 2047) * kSegment + (lane & 15);
      hits[i] = occupied<kPlain, kBinned>(grid, bits, ray, k, k < ray.stop);
    }
    const uint2 both = make_uint2(__ballot_sync(kFullWarp, hits[0]), __ballot_sync(kFullWarp, hits[1]));
    if (lane == 0) *reinterpret_cast<uint2*>(found + q) = both;
  }
}

// Long, because setup and the coarse stage stay in line: as functions they compile to other code, and this one is tuned to
// the 64 registers that eight blocks leave a thread.
template <bool kPlain, bool kBinned>
__global__ void __launch_bounds__(32 * kWarps, 8) count_kernel(
    const __grid_constant__ Arguments m, const __grid_constant__ Bits bits,
    int32_t* __restrict__ counts,  // [R]
    const Plan plan) {
  extern __shared__ uint32_t coarse[];  // [n_coarse]
  __shared__ Segmented all_rays[kWarps][kRays];
  __shared__ uint32_t all_queues[kWarps][kQueue + 4];            // ray << 27 | segment << 16
  alignas(8) __shared__ uint16_t all_found[kWarps][kQueue + 4];  // a bit per sample of each
  __shared__ int all_counts[kWarps][kRays], all_todo[kWarps][kRays + 1];
  const Extent extent = load_coarse(m, bits, coarse);
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  const int64_t group = blockIdx.x * int64_t(kWarps) + warp;
  const int64_t r = group * kRays + lane;  // of this lane
  if (group * kRays >= m.n_rays) return;
  const bool has_ray = lane < kRays && r < m.n_rays;
  Segmented* const rays = all_rays[warp];
  uint32_t* const queue = all_queues[warp];
  uint16_t* const found = all_found[warp];
  int* const count = all_counts[warp];
  int* const todo = all_todo[warp];  // rays with segments: number of segments' ends << 5 | ray
  const Grid grid(m);

  bool walked = false;
  int n_ends = 0, first = 0;
  if (has_ray) {
    count[lane] = 0;
    const Ray ray(m, r);
    if (ray.active && grid.valid && extent.low[0] <= extent.high[0]) {
      const LatticeOf<kPlain> lattice(m, r);
      int stop = 0;
      walked = !find_range(grid, ray, lattice, extent, bits.shift, first, stop);
      if (stop > first) n_ends = (stop - first + kSegment - 1) / kSegment + 1;
      Segmented& s = rays[lane];
      for (int a = 0; a < 3; ++a) s.origin[a] = ray.origin[a], s.direction[a] = ray.direction[a];
      s.start = lattice.start, s.bend = lattice.bend, s.bend_t = lattice.bend_t;
      s.first = first, s.stop = stop;
      if (kBinned) s.first_word = bin_of(m, r) * bits.words_of_bin;
    }
  }
  const unsigned busy = __ballot_sync(kFullWarp, n_ends > 0);
  const int n_todo = __popc(busy), total_ends = __reduce_add_sync(kFullWarp, n_ends);
  const unsigned lower = (1u << lane) - 1u;
  if (n_ends > 0) todo[__popc(busy & lower)] = n_ends << 5 | lane;
  if (lane == 0) todo[n_todo] = INT32_MAX & ~31;
  __syncwarp();

  int n_queue = 0, n_plan = 0;
  int i = 0, end = lane;  // this lane's: the i-th busy ray, the end-th end of its segments
  uint32_t* const list = plan.segments + group * int64_t(kRays * kPlan);
  for (int done = 0; done + 1 < total_ends || n_queue > 0;) {
    while (done + 1 < total_ends && n_queue + 31 <= kQueue) {
      int item = todo[i];
      while (end >= item >> 5) end -= item >> 5, item = todo[++i];  // the last has more than anybody asks for
      const int r_item = item & 31;
      const Segmented& ray = rays[r_item];
      const CoarsePlace here = coarse_place<kPlain>(grid, ray, bits.shift, min(ray.first + kSegment * end, ray.stop - 1));
      const int level = kPlain ? 0 : here.frame & 7;
      const auto row = [&](int x, int y) { return coarse[(level * bits.coarse_x + x) * bits.coarse_y + y]; };
      const uint32_t word = row(here.x, here.y);
      const int packed = __shfl_up_sync(kFullWarp, here.x << 18 | here.y << 5 | here.z, 1);
      const uint32_t word_before = __shfl_up_sync(kFullWarp, word, 1);
      const int frame_before = kPlain ? 0 : __shfl_up_sync(kFullWarp, here.frame, 1);
      const int x = packed >> 18, y = packed >> 5 & 8191, z = packed & 31;
      const uint32_t between = (kFullWarp >> (31 - abs(here.z - z))) << min(z, here.z);
      uint32_t words = word | word_before;
      bool flagged = unsigned(x - here.x + 1) > 2u || unsigned(y - here.y + 1) > 2u;
      if (!kPlain) flagged |= !one_level(here.frame, frame_before);
      if (!flagged && x != here.x && y != here.y) words |= row(x, here.y) | row(here.x, y);
      flagged |= (words & between) != 0;
      flagged &= lane > 0 && end > 0 && i < n_todo;  // then the lane before has the segment's other end
      const unsigned flags = __ballot_sync(kFullWarp, flagged);
      if (flagged) queue[n_queue + __popc(flags & lower)] = uint32_t(r_item) << 27 | uint32_t(end - 1) << 16;
      n_queue += __popc(flags);
      end += 31;  // the last end is the next round's first
      done += 31;
    }
    if (lane < 3) queue[n_queue + lane] = uint32_t(todo[0] & 31) << 27;  // fills up the last four; the results are not used
    __syncwarp();
    look_up<kPlain, kBinned>(grid, bits, rays, queue, n_queue, found);
    __syncwarp();
    list_segments(queue, found, n_queue, count, list, plan.segments, n_plan);
    n_queue = 0;
    __syncwarp();
  }
  if (has_ray) {
    counts[r] = walked ? walk_count(m, r) : count[lane];
    if (plan.segments) plan.first[r] = first;
  }
  const bool complete = !__any_sync(kFullWarp, walked) && n_plan <= kRays * kPlan;
  if (plan.segments && lane == 0) plan.sizes[group] = complete ? n_plan : -1;
}

template <bool kPlain>
__global__ void __launch_bounds__(32 * kWarps, 8) write_kernel(
    const __grid_constant__ Arguments m, const Plan plan,
    const int32_t* __restrict__ counts,   // [R]
    const int32_t* __restrict__ offsets,  // [R + 1]
    int64_t n,
    float* __restrict__ t_starts,         // [N]
    float* __restrict__ t_ends,           // [N]
    int32_t* __restrict__ ray_indices) {  // [N]
  struct alignas(16) Row {
    double start, bend, bend_t;
    int first, shift, end, pad;  // shift: from places in the list of the group's samples to places in the output
  };
  __shared__ Row all_rows[kWarps][kRays];
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  const int64_t group = blockIdx.x * int64_t(kWarps) + warp;
  const int64_t r = group * kRays + lane;
  Row* const rows = all_rows[warp];
  int begin = 0, end = 0, sum = 0;
  if (lane < kRays && r < m.n_rays) {
    begin = offsets[r], end = int(min(int64_t(offsets[r + 1]), n));
    sum = counts[r];
  }
  const int own = sum;
  if (__any_sync(kFullWarp, begin < end)) {
    const int size = plan.sizes[group];
    if (size >= 0) {
      for (int step = 1; step < kRays; step *= 2) {
        const int before = __shfl_up_sync(kFullWarp, sum, step);
        if (lane >= step) sum += before;
      }
      if (lane < kRays && r < m.n_rays) {
        const LatticeOf<kPlain> lattice(m, r);
        rows[lane] = {lattice.start, lattice.bend, lattice.bend_t, plan.first[r], begin - (sum - own), end, 0};
      }
      __syncwarp();
      const uint32_t* const list = plan.segments + group * int64_t(kRays * kPlan);
      int samples = 0;  // before the next 32 segments
      for (int i = 0; i < size; i += 32) {
        const uint32_t mine = i + lane < size ? list[i + lane] : 0;
        int up_to = __popc(mine & 0xFFFFu);
        for (int step = 1; step < 32; step *= 2) {
          const int before = __shfl_up_sync(kFullWarp, up_to, step);
          if (lane >= step) up_to += before;
        }
        up_to += samples;
        samples = __shfl_sync(kFullWarp, up_to, 31);
        for (int j = 0; j < min(32, size - i); j += 2) {  // two segments, half a warp each
          const uint32_t segment = __shfl_sync(kFullWarp, mine, j + (lane >> 4));
          const unsigned later = (segment & 0xFFFFu) >> (lane & 15);
          const int place = __shfl_sync(kFullWarp, up_to, j + (lane >> 4)) - __popc(later);
          const Row& row = rows[segment >> 27];
          const int out = row.shift + place;
          if ((later & 1) && out < row.end) {
            const double k = exact(row.first + int(segment >> 16 & 2047) * kSegment + (lane & 15));
            const LatticeOf<kPlain> lattice(m, row.start, row.bend, row.bend_t);
            t_starts[out] = lattice.edge(k);
            t_ends[out] = lattice.edge(k + 1.0);
            ray_indices[out] = int32_t(group * kRays + (segment >> 27));
          }
        }
      }
    } else {
      if (begin < end) walk_write(m, r, begin, end, t_starts, t_ends);
      __syncwarp();
      for (int i = 0; i < kRays; ++i) {
        const int stop = __shfl_sync(kFullWarp, end, i);
        for (int j = __shfl_sync(kFullWarp, begin, i) + lane; j < stop; j += 32)
          ray_indices[j] = int32_t(group * kRays + i);
      }
    }
  }
  // All threads together clear the tail. There are some even for R = 0.
  const int64_t thread = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  for (int64_t i = offsets[m.n_rays] + thread; i < n; i += int64_t(gridDim.x) * blockDim.x) {
    t_starts[i] = t_ends[i] = 0.0f;
    ray_indices[i] = 0;
  }
}

}  // namespace lightning_nerf::march
