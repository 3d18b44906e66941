// Tensors that hold others: those of Python's wrapper classes, such as DTensor.
#pragma once

#include <ebbtide/pinned_pool/export.h>

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

namespace ebbtide {

/// A wrapper without what it held.
/// Threads: any, one at a time.
class EmptyWrapper {
 public:
  virtual ~EmptyWrapper() = default;
  /// The same wrapper over `inner`, which stand for those that it held. Errors: those of its class.
  virtual at::Tensor over(const std::vector<at::Tensor>& inner) const = 0;
};

struct TakenApart {
  std::vector<at::Tensor> inner;
  std::unique_ptr<EmptyWrapper> wrapper;  ///< null: the tensor is no wrapper, or stays whole
};

/// Who knows wrapper classes, the Python module, says so when it is loaded. Until then all stay whole.
EBBTIDE_API void set_take_apart(TakenApart (*function)(const at::Tensor&)) noexcept;
TakenApart take_apart(const at::Tensor& tensor);

}  // namespace ebbtide
