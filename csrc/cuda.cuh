// What every .cu launcher needs: the current stream, a device guard, block counts.
#pragma once
#include "stable.h"

// Defined by libtorch_cuda only. Weak, so that this library also loads on a CPU build of torch.
#pragma weak aoti_torch_get_current_cuda_stream
#pragma weak torch_c10_cuda_check_msg
#pragma weak torch_c10_cuda_free_error_msg

#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>

namespace lightning_nerf {

constexpr int kThreads = 256;

inline unsigned int blocks(int64_t n, int threads = kThreads) {
  return static_cast<unsigned int>((n + threads - 1) / threads);
}

// Makes the tensor's device current for the launches below it and knows its current stream.
struct Launch {
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;

  explicit Launch(const Tensor& t) : guard(t.get_device_index()), stream(nullptr) {
    void* raw = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &raw));
    stream = static_cast<cudaStream_t>(raw);
  }
};

}  // namespace lightning_nerf
