// The version at which a tensor was saved, without its bytes.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>

#include <cstdint>
#include <string>
#include <typeinfo>

namespace ebbtide {

/// Torch compares no versions where there are hooks: they do.
/// Threads: noted once; then any.
class SavedVersion {
 public:
  SavedVersion() : tensor_(c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>()) {}

  /// `tensor` is saved now.
  void note(const at::Tensor& tensor);

  /// Whether nobody has written to the tensor since it was saved.
  bool unchanged() const noexcept { return !version_.enabled() || version_.current_version() == saved_; }
  /// REQUIRES: it has changed. `described`: the tensor's type and shape as torch words them, "torch.FloatTensor [3, 4]".
  /// Errors: what PyTorch raises for a tensor that was written to after it was saved.
  [[noreturn]] void raise(const std::string& described) const;

  const c10::VariableVersion& counter() const noexcept { return version_; }
  uint32_t saved() const noexcept { return saved_; }
  /// The type of the node that made it, null for none.
  const std::type_info* producer() const noexcept { return producer_; }

 private:
  std::string producer_name() const;

  c10::VariableVersion version_;
  uint32_t saved_ = 0;
  // For the error's text: an in-place write changes which node made the tensor, and keeping a node would be a cycle.
  c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> tensor_;
  const std::type_info* producer_ = nullptr;
};

}  // namespace ebbtide
