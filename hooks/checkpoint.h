// Parts of a model whose insides need not be kept: they can be computed again.
#pragma once

#include <ebbtide/hooks/checkpoint_inputs.h>
#include <ebbtide/pinned_pool/export.h>

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace ebbtide {

/// The first run of a region's function: what autograd saves on this thread while it lives is the region's.
///
/// Threads: made, used and destroyed on one thread.
class EBBTIDE_API CheckpointedRun {
 public:
  /// Those that this thread asks for are seen, where the function may run any.
  enum class Collectives : uint8_t {
    kNone,      ///< the function runs none
    kPossible,  ///< until finish() nothing is let go of to be computed again
    kWatched,   ///< until the first is seen it is let go of; where the process may run any, as kPossible
  };

  /// Saves `inputs`, which must be those of the function. `again` runs it with the inputs that it is given, at any time
  /// while what was saved lives, on any thread that unpacks, and must do then what the first run did. With gradients off
  /// there is nothing to do.
  CheckpointedRun(const std::vector<at::Tensor>& inputs, std::function<void(const std::vector<at::Tensor>&)> again,
                  Collectives collectives = Collectives::kNone);
  ~CheckpointedRun();
  CheckpointedRun(const CheckpointedRun&) = delete;
  CheckpointedRun& operator=(const CheckpointedRun&) = delete;

  /// The function has returned. `ran_collective`: one that was not seen, too. A region that ran any is never run again by
  /// a store's choice: processes that chose otherwise would wait for one another for ever. (Without a store it runs again
  /// in each of them.)
  void finish(bool ran_collective = false);

 private:
  class Source;
  std::unique_ptr<Source> source_;
};

/// Returns what `function(inputs...)` returns. What autograd saves inside is, without a store, computed again in the
/// backward, as with torch.utils.checkpoint (non-reentrant): random numbers, autocast and the number of threads are those
/// of the first run. Inside an OffloadScope it is kept while the budget has room, or moved or computed again, as the rule
/// or the plan finds; the inputs are saved as any tensor is. Regions nest.
///
/// `inputs` may be tensors, vectors, optionals, pairs and tuples of them, and any values that can be copied; what the
/// function captures is not saved, and must not change before the backward. A region that asks for a collective of c10d is
/// not run again by a store's choice. (In a process that has asked for none before, and has no WORLD_SIZE, what was let go
/// of before the collective is made again, as far as there.)
/// Errors: in the backward, CheckpointError where the function saves other tensors than the first time.
template <class Function, class... Inputs>
decltype(auto) checkpoint(Function&& function, Inputs&&... inputs) {
  using Values = std::tuple<std::decay_t<Inputs>...>;
  const auto shared = std::make_shared<std::decay_t<Function>>(std::forward<Function>(function));
  Values values(std::forward<Inputs>(inputs)...);
  std::vector<at::Tensor> tensors;
  CheckpointInputs::list(values, tensors);
  Values without = values;
  CheckpointInputs::put(without, std::vector<at::Tensor>(tensors.size()));
  CheckpointedRun run(
      tensors,
      [shared, without = std::move(without)](const std::vector<at::Tensor>& again) {
        Values values_again = without;
        CheckpointInputs::put(values_again, again);
        (void)std::apply(*shared, std::move(values_again));
      },
      CheckpointedRun::Collectives::kWatched);
  tensors.clear();
  if constexpr (std::is_void_v<decltype(std::apply(*shared, std::move(values)))>) {
    std::apply(*shared, std::move(values));
    run.finish();
  } else {
    auto result = std::apply(*shared, std::move(values));
    run.finish();
    return result;
  }
}

}  // namespace ebbtide
