// One run of a region: what its function read, and what autograd saved in it.
#pragma once

#include <ebbtide/hooks/recipe.h>
#include <ebbtide/hooks/saved_tensor.h>
#include <ebbtide/hooks/saved_version.h>
#include <ebbtide/hooks/surroundings.h>
#include <ebbtide/hooks/torch_storage.h>
#include <ebbtide/store/record.h>
#include <ebbtide/store/region.h>
#include <ebbtide/store/store_core.h>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

namespace ebbtide {

class CheckpointFrame;

/// What is compared when a tensor is saved again.
struct Look {
  std::vector<int64_t> sizes;
  bool has_sizes = false;  ///< nested tensors and symbolic ones have none
  at::ScalarType dtype = at::kFloat;
  c10::Device device{c10::kCPU};

  Look() = default;
  explicit Look(const at::Tensor& tensor);
  bool operator==(const Look&) const = default;
  std::string text() const;
};

/// One tensor that was saved in the first run, as its node keeps it. Its bytes are with a store, or nowhere until the
/// function has run again.
struct CheckpointSlot {
  std::shared_ptr<CheckpointFrame> frame;
  std::unique_ptr<SavedTensor> saved;  ///< with a store; else null
  SavedVersion version;                ///< else
  size_t place = 0;                    ///< in the order of saving
  bool stays = false;                  ///< `value` is the tensor itself, which lives anyway

  // Guarded by the frame's mutex.
  at::Tensor value;                       ///< made again, or the tensor itself
  std::shared_ptr<TorchStorage> storage;  ///< made again, for a record that nobody has asked for yet in this graph task
  int unpacked_in = -2;                   ///< the last graph task that asked for it
};

/// Non-reentrant: its inputs are saved as any tensor is, by the hooks around it, and what is saved inside can be made
/// again by running the function again, up to the last that is wanted.
///
/// Lifetime: shared by the slots, and by the recipes of records. It keeps its inputs.
/// Threads: begun and run on one thread; then any. Nothing waits: threads that ask at the same time run the function each,
/// and the first result counts.
class CheckpointFrame : public std::enable_shared_from_this<CheckpointFrame> {
 public:
  /// Runs the function again, with these inputs. Called on any thread that unpacks.
  using Run = std::function<void(const std::vector<at::Tensor>&)>;

  /// Saves the inputs. `store`: what takes that which is saved inside; null for none.
  /// `at_once`: a store may let go of what is saved inside before the first run is over.
  CheckpointFrame(const std::vector<at::Tensor>& inputs, Run again, std::shared_ptr<StoreCore> store, bool at_once);
  CheckpointFrame(const CheckpointFrame&) = delete;
  CheckpointFrame& operator=(const CheckpointFrame&) = delete;

  /// A tensor is saved in the first run. Errors: OutOfBudget.
  std::shared_ptr<CheckpointSlot> pack(const at::Tensor& tensor);
  /// Errors: those of unpacking the inputs, those of the function; CheckpointError.
  at::Tensor unpack(CheckpointSlot& slot);
  /// The first run is over. `seconds`: what it took. `may_run_again`: else a store keeps or moves what is inside.
  void complete(double seconds, bool may_run_again);

  /// What is saved from now on cannot be made again without running a collective again.
  void ran_collective() noexcept { store_may_run_it_ = false; }

  uint64_t number() const noexcept { return number_; }  ///< of no other, nor zero
  const std::shared_ptr<StoreCore>& store() const noexcept { return store_; }
  bool inputs_unchanged() const noexcept;
  /// As RunnableRecipe::make_again().
  std::shared_ptr<TorchStorage> make_again(Record& record);

 private:
  friend class Recompute;

  struct Input {
    explicit Input(const at::Tensor& tensor);
    at::Tensor value() const;

    std::unique_ptr<torch::autograd::SavedVariableHooks> hooks;
    at::Tensor kept;  // where there are no hooks
    SavedVersion version;
    bool requires_grad = false;
  };
  /// A tensor that was saved, in the order of saving.
  struct Entry {
    std::weak_ptr<CheckpointSlot> slot;
    std::weak_ptr<Record> record;
    std::weak_ptr<const Recipe> recipe;  // null where the record is not this region's to make
    ViewOfStorage view;                  // of a record's storage
    size_t storage_bytes = 0;
    Look look;
  };
  struct Made {
    std::shared_ptr<Record> record;
    std::shared_ptr<CheckpointSlot> slot;
    at::Tensor value;
    StreamId stream;
  };
  class TaskEnd;

  std::vector<std::pair<std::shared_ptr<Record>, std::shared_ptr<const Recipe>>> offered();
  void offer(const at::Tensor& tensor, CheckpointSlot& slot, Entry& entry);
  std::vector<Made> recompute(const CheckpointSlot* slot, const Record* record);
  std::vector<bool> wanted(const CheckpointSlot* slot, const Record* record, int task);
  void watch(int task);
  void let_go() noexcept;

  const uint64_t number_;
  const Run again_;
  const std::shared_ptr<StoreCore> store_;
  const RegionLabel* const label_;
  Surroundings surroundings_;
  std::vector<std::unique_ptr<Input>> inputs_;  // each tensor once; null: an undefined one
  std::vector<size_t> arguments_;               // the input that each is
  std::vector<const SavedTensor*> saved_inputs_;
  std::vector<std::shared_ptr<Record>> records_;         // of inputs
  std::vector<const c10::StorageImpl*> input_storages_;  // for the first run, in which they live
  std::atomic<bool> complete_{false};
  std::atomic<bool> runs_to_its_end_{false};  // a second run is not broken off
  std::atomic<bool> store_may_run_it_;

  std::mutex mutex_;  // never held while anything of torch's or the function runs; before the store's
  std::vector<Entry> entries_;
  std::unordered_set<const Record*> offered_;
  int watched_ = -1;  // graph task
};

/// The hooks of what is saved in the first run.
class CheckpointedTensor final : public torch::autograd::SavedVariableHooks {
 public:
  explicit CheckpointedTensor(std::shared_ptr<CheckpointFrame> frame) : frame_(std::move(frame)) {}
  void call_pack_hook(const at::Tensor& tensor) override { slot_ = std::exchange(frame_, nullptr)->pack(tensor); }
  at::Tensor call_unpack_hook() override { return slot_->frame->unpack(*slot_); }
  /// With a store; else null.
  const SavedTensor* saved() const noexcept { return slot_->saved.get(); }

 private:
  std::shared_ptr<CheckpointFrame> frame_;  // until the pack
  std::shared_ptr<CheckpointSlot> slot_;
};

}  // namespace ebbtide
