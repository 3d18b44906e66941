// One tensor that a node of the graph saved.
#pragma once

#include <ebbtide/hooks/recipe.h>
#include <ebbtide/hooks/scope.h>
#include <ebbtide/hooks/view_of_storage.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/error.h>
#include <ebbtide/store/record.h>
#include <ebbtide/transfer/block_cache.h>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <typeinfo>

namespace ebbtide {

/// Autograd owns it: packed while the node is made, unpacked whenever a backward or a user asks, destroyed with the
/// node. It keeps the record, and so the store's core, alive.
/// Threads: torch serialises pack and unpack of one; different ones run on any threads at once.
class EBBTIDE_API SavedTensor final : public torch::autograd::SavedVariableHooks {
 public:
  static std::unique_ptr<SavedTensor> make(Scope& scope);

  // From the memory of earlier ones: one comes and goes with each tensor that is saved.
  static void* operator new(size_t bytes, BlockCache& memory) { return memory.take(bytes); }
  static void operator delete(void* block, BlockCache& memory) { memory.give(block); }
  static void operator delete(SavedTensor* saved, std::destroying_delete_t) noexcept;

  /// Errors: OutOfBudget, in a forward whose earlier tensors fit nowhere.
  void call_pack_hook(const at::Tensor& tensor) override;
  /// Errors: what PyTorch raises for a tensor that was written to after it was saved; SpillError, DeviceError, CorruptTensor.
  at::Tensor call_unpack_hook() override;

  // What recipes look at.
  /// Null for what is passed through.
  const std::shared_ptr<Record>& record() const noexcept { return record_; }
  const at::Tensor& passed_through() const noexcept { return passed_through_; }
  /// REQUIRES: a record.
  Operand operand() const;
  /// Whether nobody has written to the tensor since it was saved.
  bool unchanged() const noexcept { return !version_.enabled() || version_.current_version() == saved_version_; }

 private:
  explicit SavedTensor(Scope& scope);

  void announce_backward();
  void check_version() const;
  std::string producer() const;

  BlockCache& memory_;
  Scope* scope_;                    // valid until the pack
  at::Tensor passed_through_;       // the tensor itself, where the store must not touch it
  std::shared_ptr<Record> record_;  // else
  ViewOfStorage view_;
  std::shared_ptr<const TorchRecipe> trial_;  // kept bytes are compared with what it makes, once
  c10::VariableVersion version_;              // holds no bytes of the tensor
  uint32_t saved_version_ = 0;
  // For the error's text: an in-place write changes which node made the tensor, and keeping a node would be a cycle.
  c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> tensor_;
  const std::type_info* producer_ = nullptr;
};

/// Python processes turn the store's errors into exceptions of the Python classes of the same names on their way
/// through torch. `rethrow` is called in a catch block and throws.
/// Threads: set once, before the first scope.
EBBTIDE_API void set_error_translator(void (*rethrow)(const Error& error));

}  // namespace ebbtide
