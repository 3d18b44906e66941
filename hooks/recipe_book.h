// How the recipe of a saved tensor is found while it is packed.
#pragma once

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
#include <string>
#include <unordered_map>

namespace ebbtide {

/// Which record holds which node's result, and which call sites were seen to give the same bits again. One a store.
///
/// Recipes rest on records, never on nodes: a node that saves its own result would keep itself alive, and what another
/// backward has released could not be read again.
/// Threads: all methods from any.
class RecipeBook {
 public:
  struct Packed {
    const at::Tensor& tensor;
    const std::shared_ptr<Record>& record;
    const ViewOfStorage& view;  ///< of the record's storage
    Bytes origin;               ///< as StoreCore::Packed::origin
    uint32_t version = 0;
    const std::shared_ptr<Device>& device;  ///< an accelerator's
    StreamId stream = kHostStream;          ///< current at the pack
  };
  /// Takes note of whose result was packed, and offers its recipe to the store if it has one and needs one.
  void packed(StoreCore& core, const Packed& packed, bool needs_none);

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
  /// A comparison that a device was asked for: the first of those on which the site is met.
  struct Pending {
    at::Tensor differs;  // of host memory, to be read after `compared`
    std::shared_ptr<Device> device;
    EventPtr compared;
  };
  struct Site {
    Verdict verdict = Verdict::kNotYet;
    std::optional<Pending> pending;
  };

  void note(const Packed& packed);
  Verdict judge(StoreCore& core, const Packed& packed, const at::Tensor& result, const TorchRecipe& recipe,
                const std::string& site, bool every_time);
  void compare_on_device(const Packed& packed, const c10::Storage& made, const c10::Storage& saved,
                         const std::string& site);

  static constexpr size_t kLeastToPrune = 1024;
  static constexpr size_t kMostSites = 8192;

  const std::shared_ptr<RedoCache> cache_ = std::make_shared<RedoCache>();
  mutable std::mutex mutex_;
  std::map<ResultId, Holder> holders_;
  size_t prune_at_ = kLeastToPrune;
  std::unordered_map<std::string, Site> sites_;
};

}  // namespace ebbtide
