// Ops that can be run again, and the tensors that they read.
#pragma once

#include <ebbtide/hooks/arithmetic.h>
#include <ebbtide/hooks/torch_storage.h>
#include <ebbtide/hooks/view_of_storage.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/recipe.h>
#include <ebbtide/store/record.h>
#include <ebbtide/store/store_core.h>

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>
#include <torch/csrc/autograd/function.h>

#include <atomic>
#include <chrono>
#include <compare>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
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

/// A tensor that a step reads: a view of a record or of a parameter, at the version at which it was saved or found, what
/// another step makes, a copy of the recipe's own, or nothing (an optional argument).
struct Operand {
  std::shared_ptr<Record> record;
  c10::Storage parameter;  ///< lives on if another is put in its place
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
  bool costly = false;       ///< as RecipeRow::costly
  ResultId result;
  std::vector<Operand> operands;
  Redo redo;
};

/// Seconds that this thread spends on a redo alone: redos that it asks for as its inputs, and waits for these, are
/// counted by themselves.
class RedoTimer {
 public:
  RedoTimer();
  ~RedoTimer() { (void)stop(); }
  RedoTimer(const RedoTimer&) = delete;
  RedoTimer& operator=(const RedoTimer&) = delete;
  double stop();

 private:
  double before_;
  std::chrono::steady_clock::time_point began_;
  double seconds_ = -1;
};

/// What hooks can run.
class EBBTIDE_API RunnableRecipe : public Recipe {
 public:
  using Recipe::Recipe;
  /// Makes the bytes of `record`, which awaits them, and offers them to the store; others' too where they come with them.
  /// Returns the storage to use. Errors: as run() of the recipe's kind.
  virtual std::shared_ptr<TorchStorage> make_again(Record& record, StreamId stream) const = 0;
};

/// A step whose result is a whole storage.
/// Bits: kernels round by their arithmetic and by strides. The first is set for the redo, and what does not come out with
/// the strides of the tensor that was saved is an error. So is, in host memory, what has another fingerprint: torch does
/// not see writes through .data or .numpy(), before a result is saved or to what it is made from.
class EBBTIDE_API TorchRecipe final : public RunnableRecipe {
 public:
  /// `result`: the tensor that the op made, which fills its storage from the first byte; `origin` as
  /// StoreCore::Packed::origin.
  TorchRecipe(Step step, const at::Tensor& result, Bytes origin, std::shared_ptr<RedoCache> cache);

  bool inputs_unchanged() const noexcept override;
  bool cheap() const noexcept override { return cheap_; }
  std::optional<double> seconds() const noexcept override { return seconds_; }
  /// REQUIRES: the recipe is not shared yet.
  void takes(std::optional<double> seconds) noexcept { seconds_ = seconds; }

  /// The storages of the parameters that it reads.
  std::vector<const c10::StorageImpl*> parameters() const;
  /// On trial no more: an optimizer changes what it reads.
  void retire() const noexcept { retired_ = true; }
  bool retired() const noexcept { return retired_; }
  enum class Fingerprint : uint8_t { kNone, kSample, kAll };
  /// What a redo must make from now on, by all its bytes or by some that lie all over it, which costs a microsecond at
  /// most. REQUIRES: host memory; the recipe is not shared yet.
  void expect(const c10::Storage& made, Fingerprint by);
  /// What the parameters must hold from now on. REQUIRES: host memory; the recipe is not shared yet.
  void expect_parameters() { expected_parameters_ = fingerprint_of_parameters(); }
  /// Whether they do, and nobody has written to its other inputs either; none where nothing was expected of them.
  std::optional<bool> finds_parameters() const;

  /// Runs the op, on the current streams. Errors: those of unpacking its inputs; RuntimeError for an input that was
  /// written to; CorruptTensor.
  std::shared_ptr<TorchStorage> run() const;
  std::shared_ptr<TorchStorage> make_again(Record& record, StreamId stream) const override;

 private:
  void check_inputs() const;
  uint64_t fingerprint_of_parameters() const;

  const Step step_;
  const ViewOfStorage result_;
  const std::shared_ptr<RedoCache> cache_;
  const Arithmetic arithmetic_;
  const bool cheap_;
  std::optional<double> seconds_;
  Fingerprint expected_by_ = Fingerprint::kNone;
  uint64_t expected_ = 0;
  std::optional<uint64_t> expected_parameters_;
  mutable std::atomic<bool> retired_{false};
};

/// What an operand stands for now; undefined for one that is absent.
/// REQUIRES: a RedoEnvironment. Errors: as storage_of.
at::Tensor value_of(const Operand& operand, RedoCache& cache);

/// A record's storage: there, fetched, or made again.
struct StorageOfRecord {
  std::shared_ptr<TorchStorage> storage;
  Bytes origin;  ///< as StoreCore::Unpacked::origin
  bool made_again = false;
};
/// Errors: SpillError, CorruptTensor, OutOfBudget.
StorageOfRecord storage_of(Record& record, c10::Device device, StoreCore::AskedBy by);

}  // namespace ebbtide
