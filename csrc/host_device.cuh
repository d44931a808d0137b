// Functions shared by the CPU and the CUDA launchers.
#pragma once
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define LN_HD __host__ __device__ __forceinline__
#else
#define LN_HD inline
#endif
