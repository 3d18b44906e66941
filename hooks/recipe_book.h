// How the recipe of a saved tensor is found while it is packed.
#pragma once

#include <ebbtide/hooks/parameter_registry.h>
#include <ebbtide/hooks/parameter_trust.h>
#include <ebbtide/hooks/recipe.h>
#include <ebbtide/hooks/redo_cache.h>
#include <ebbtide/hooks/view_of_storage.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/transfer/device.h>

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace ebbtide {

/// Which record holds which node's result, and which call sites were seen to give the same bits again. One a store.
///
/// Recipes rest on records, never on nodes: a node that saves its own result would keep itself alive, and what another
/// backward has released could not be read again.
/// Threads: all methods from any.
class RecipeBook {
 public:
  /// `core`: of the store that keeps it. `parameters`: those that recipes may read, and whose changes are announced. Lives
  /// as long.
  RecipeBook(StoreCore& core, const ParameterRegistry& parameters);

  struct Packed {
    const at::Tensor& tensor;
    const std::shared_ptr<Record>& record;
    const ViewOfStorage& view;  ///< of the record's storage
    Bytes origin;               ///< as StoreCore::Packed::origin
    uint32_t version = 0;
    const std::shared_ptr<Device>& device;  ///< an accelerator's
    StreamId stream = kHostStream;          ///< current at the pack
  };
  /// Takes note of whose result was packed, and offers its recipe to the store if it has one and one is wanted. A recipe
  /// that is on trial is returned, see try_out().
  std::shared_ptr<const TorchRecipe> packed(StoreCore& core, const Packed& packed, StoreCore::RecipeWanted wanted);
  /// The bytes that a recipe on trial is to make are asked for: does it make them, or where another of its site shows that
  /// in this step, does it find the parameters as they were? `kept`: they, `origin` as
  /// StoreCore::Unpacked::origin. `device`: an accelerator's, whose answer comes later.
  void try_out(StoreCore& core, const TorchRecipe& recipe, const c10::Storage& kept, Bytes origin,
               const std::shared_ptr<Device>& device, StreamId stream);
  void backward_ended(StoreCore& core);

  ParameterTrust& trust() noexcept { return trust_; }
  bool may_read(const at::Tensor& parameter) const;
  /// As ParameterRegistry::layer_norm_eps().
  std::optional<double> layer_norm_eps(const at::Tensor& weight) const { return parameters_.layer_norm_eps(weight); }
  /// As ParameterRegistry::unchanged_since().
  bool unchanged_since(const torch::autograd::Node& node, const at::Tensor& parameter) const {
    return parameters_.unchanged_since(node, parameter);
  }
  /// These are about to be written to: what rests on them is made again now and leaves as bytes. May wait for room.
  /// Errors: as storage_of.
  void before_change(StoreCore& core, std::span<const at::Tensor> parameters);

  /// The record of a result that nobody has written to since it was made; none where it is not known.
  std::optional<Operand> find(const ResultId& result) const;

  /// What redos read on their way, see RedoCache.
  RedoCache& cache() const noexcept { return *cache_; }

 private:
  struct Holder {
    std::weak_ptr<Record> record;
    ViewOfStorage view;
    c10::VariableVersion version;
  };
  enum class Verdict { kEqual, kUnequal, kNotYet };
  /// A comparison that a device was asked for.
  struct Pending {
    at::Tensor answers;  // whether bytes differ, whether values tell; of host memory, to be read after `compared`
    std::shared_ptr<Device> device;
    EventPtr compared;
    EventPtr began, ended;  // around the redo; null where the device times nothing

    Verdict look() const;
    bool tells() const { return answers.const_data_ptr<bool>()[1]; }  // REQUIRES: look() gave a verdict
    std::optional<double> seconds() const;
  };
  struct Trial {
    int64_t step = 0;
    Pending pending;
    const char* op = nullptr;
  };
  struct Site {
    Verdict verdict = Verdict::kNotYet;
    std::optional<Pending> pending;  // of the first of those on which the site is met
    std::optional<double> seconds;   // of a redo
    int64_t tried_in = -1;           // the step in which one of its recipes was on trial last
  };

  /// Rests on parameters.
  struct Resting {
    std::weak_ptr<Record> record;
    std::weak_ptr<const TorchRecipe> recipe;
    c10::Device device;
  };

  struct Found {
    std::shared_ptr<TorchRecipe> recipe;
    bool on_trial = false;
  };

  void note(const Packed& packed);
  /// Runs the op again that made it.
  Found of_op(StoreCore& core, const Packed& packed, bool costly);
  /// As as_bits.
  std::shared_ptr<TorchRecipe> of_bits(const Packed& packed) const;
  void watch(const Packed& packed, const std::shared_ptr<const TorchRecipe>& recipe);
  Verdict judge(StoreCore& core, const Packed& packed, const at::Tensor& result, TorchRecipe& recipe,
                const std::string& site, bool every_time);
  bool first_on_trial(const std::string& site);
  static std::optional<Pending> compare_on_device(const std::shared_ptr<Device>& device, StreamId stream,
                                                  const at::Tensor& made, const at::Tensor& saved,
                                                  const at::Tensor& values);
  void look_at_trials(StoreCore& core);

  static constexpr size_t kLeastToPrune = 1024;
  static constexpr size_t kMostSites = 8192;

  const ParameterRegistry& parameters_;
  ParameterTrust trust_;
  const std::shared_ptr<RedoCache> cache_;
  mutable std::mutex mutex_;
  std::map<ResultId, Holder> holders_;
  size_t prune_at_ = kLeastToPrune;
  std::unordered_map<std::string, Site> sites_;
  std::vector<Trial> trials_;  // that devices are not known to be through with
  std::vector<Resting> resting_;
  size_t prune_resting_at_ = kLeastToPrune;
};

}  // namespace ebbtide
