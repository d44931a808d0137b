// Functions shared by the CPU and the CUDA launchers.
#pragma once
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define LN_HD __host__ __device__ __forceinline__
#else
#define LN_HD inline
#endif

namespace lightning_nerf {

constexpr unsigned kFullWarp = 0xFFFFFFFFu;  // all lanes, for the shuffles and votes of a converged warp

}  // namespace lightning_nerf
