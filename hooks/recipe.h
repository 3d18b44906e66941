// Ops that can be run again, and the tensors that they read.
#pragma once

#include <ebbtide/hooks/torch_storage.h>
#include <ebbtide/hooks/view_of_storage.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/recipe.h>
#include <ebbtide/store/record.h>
#include <ebbtide/store/store_core.h>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>

#include <compare>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

namespace ebbtide {

class RedoCache;
struct Step;

/// A node's result. No address: those are used again at once.
struct ResultId {
  uint64_t thread = 0;
  uint64_t sequence = 0;  ///< unique on the thread
  uint32_t output = 0;
  auto operator<=>(const ResultId&) const = default;
  static ResultId of(const torch::autograd::Node& node, uint32_t output) {
    return {node.thread_id(), node.sequence_nr(), output};
  }
};

/// A tensor that a step reads: a view of a record at the version at which it was saved, what another step makes, a copy
/// of the recipe's own, or nothing (an optional argument).
struct Operand {
  std::shared_ptr<Record> record;
  ViewOfStorage view;
  c10::VariableVersion version;
  uint32_t saved_version = 0;

  std::shared_ptr<const Step> step;

  at::Tensor copy;
};

/// Runs an op on the values of its operands.
using Redo = std::function<at::Tensor(std::span<const at::Tensor>)>;

/// One op with all that it needs to be run again.
struct Step {
  const char* op = nullptr;  ///< as RecipeRow::name
  ResultId result;
  std::vector<Operand> operands;
  Redo redo;
};

/// A step whose result is a whole storage.
/// Bits: kernels round by the number of threads and by strides. The first is set for the redo, and what does not come
/// out with the strides of the tensor that was saved is an error.
class EBBTIDE_API TorchRecipe final : public Recipe {
 public:
  /// `result`: the tensor that the op made, which fills its storage from the first byte; `origin` as
  /// StoreCore::Packed::origin.
  TorchRecipe(Step step, const at::Tensor& result, Bytes origin, std::shared_ptr<RedoCache> cache);

  bool inputs_unchanged() const noexcept override;

  /// Runs the op, on the current streams. Errors: those of unpacking its inputs; RuntimeError for an input that was
  /// written to.
  std::shared_ptr<TorchStorage> run() const;

 private:
  const Step step_;
  const ViewOfStorage result_;
  const std::shared_ptr<RedoCache> cache_;
  const int threads_;
};

/// What an operand stands for now; undefined for one that is absent.
/// REQUIRES: a RedoEnvironment. Errors: as storage_of.
at::Tensor value_of(const Operand& operand, RedoCache& cache);

/// A record's storage: there, fetched, or made again.
struct StorageOfRecord {
  std::shared_ptr<TorchStorage> storage;
  Bytes origin;  ///< as StoreCore::Unpacked::origin
};
/// Errors: SpillError, CorruptTensor, OutOfBudget.
StorageOfRecord storage_of(Record& record, c10::Device device, StoreCore::AskedBy by);

}  // namespace ebbtide
