// The only header that includes torch: LibTorch's stable ABI, and the argument checks every launcher needs.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <tuple>

namespace lightning_nerf {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A launcher's last line of defence. The public Python functions check shapes and dtypes first, with friendlier words.
inline void check(const Tensor& t, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has the wrong dtype");
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
}
inline void check_float(const Tensor& t, const char* name) { check(t, ScalarType::Float, name); }
inline void check_int(const Tensor& t, const char* name) { check(t, ScalarType::Int, name); }

template <typename T>
const T* data(const Tensor& t) {
  return t.const_data_ptr<T>();
}
template <typename T>
T* mutable_data(const Tensor& t) {
  return t.mutable_data_ptr<T>();
}

// Uninitialized tensor on the device of `like`. The stable ABI's own error names its source file and not what was asked for.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  try {
    return torch::stable::new_empty(like, shape, dtype);
  } catch (const std::exception&) {
    std::string sizes;
    for (const int64_t size : shape) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
    STD_TORCH_CHECK(
        false, "out of memory on the ", like.is_cuda() ? "GPU" : "CPU",
        ": lightning_nerf could not allocate a tensor of shape [", sizes, "]");
  }
}

// CPU launchers: body(i) for i in [0, n). Each i must write only what it owns, so that the bits don't depend on the number
// of threads. `grain` is the number of iterations below which a further thread does not pay.
template <typename Body>
void parallel_for(int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

// The same for work by ray: threads take blocks of `grain` in turn. Of a batch of fixed capacity the first rays are active
// and have all the samples; in contiguous shares the first thread would do all the work.
template <typename Body>
void parallel_for_rays(int64_t n, int64_t grain, const Body& body) {
  const int64_t blocks = (n + grain - 1) / grain;
  const int64_t shares = std::min<int64_t>(blocks, int64_t(torch::stable::get_num_threads()));
  parallel_for(shares, 1, [&](int64_t share) {
    for (int64_t block = share; block < blocks; block += shares)
      for (int64_t i = block * grain; i < std::min(n, (block + 1) * grain); ++i) body(i);
  });
}

}  // namespace lightning_nerf
