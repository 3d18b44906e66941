// One tensor that a node of the graph saved.
#pragma once

#include <ebbtide/hooks/recipe.h>
#include <ebbtide/hooks/saved_version.h>
#include <ebbtide/hooks/scope.h>
#include <ebbtide/hooks/view_of_storage.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/record.h>
#include <ebbtide/transfer/block_cache.h>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace ebbtide {

/// Autograd owns it: packed while the node is made, unpacked whenever a backward or a user asks, destroyed with the
/// node. It keeps the record, and so the store's core, alive.
/// Threads: torch serialises pack and unpack of one; different ones run on any threads at once.
class EBBTIDE_API SavedTensor final : public torch::autograd::SavedVariableHooks {
 public:
  /// Whether what it packs may be given a recipe of the op that made it.
  enum class Recipes : uint8_t { kSearched, kNone };
  static std::unique_ptr<SavedTensor> make(Scope& scope, Recipes recipes = Recipes::kSearched);
  ~SavedTensor() override;

  // From the memory of earlier ones: one comes and goes with each tensor that is saved.
  static void* operator new(size_t bytes, BlockCache& memory) { return memory.take(bytes); }
  static void operator delete(void* block, BlockCache& memory) { memory.give(block); }
  static void operator delete(SavedTensor* saved, std::destroying_delete_t) noexcept;

  /// Errors: OutOfBudget, in a forward whose earlier tensors fit nowhere.
  void call_pack_hook(const at::Tensor& tensor) override;
  /// Errors: what PyTorch raises for a tensor that was written to after it was saved; SpillError, DeviceError, CorruptTensor.
  at::Tensor call_unpack_hook() override { return unpack(StoreCore::AskedBy::kBackward); }
  at::Tensor unpack(StoreCore::AskedBy by);

  // What recipes look at.
  /// Null for what is passed through, and for wrappers that were taken apart.
  const std::shared_ptr<Record>& record() const noexcept { return record_; }
  const at::Tensor& passed_through() const noexcept { return passed_through_; }
  /// REQUIRES: a record.
  Operand operand() const;
  /// Whether nobody has written to the tensor since it was saved.
  bool unchanged() const noexcept { return version_.unchanged(); }
  /// As arithmetic_now() when it was saved, which is when the op ran that saved it.
  uint64_t arithmetic() const noexcept { return arithmetic_; }

 private:
  struct Apart;
  SavedTensor(Scope& scope, Recipes recipes);

  void pass_through(const at::Tensor& tensor);
  bool pack_apart(const at::Tensor& tensor, Scope& scope);
  void announce_backward();
  void try_out(const TorchRecipe& trial, const StorageOfRecord& kept) const;

  BlockCache& memory_;
  Scope* scope_;                    // valid until the pack
  at::Tensor passed_through_;       // the tensor itself, where the store must not touch it
  std::unique_ptr<Apart> apart_;    // a wrapper's, whose inner tensors are saved each by itself
  std::shared_ptr<Record> record_;  // else
  ViewOfStorage view_;
  std::shared_ptr<const TorchRecipe> trial_;  // kept bytes are compared with what it makes, once
  SavedVersion version_;
  uint64_t arithmetic_ = 0;
  Recipes recipes_;
};

}  // namespace ebbtide
