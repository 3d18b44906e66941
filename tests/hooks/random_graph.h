// Random autograd programs, the same each time for a seed.
#pragma once

#include <ebbtide/store/region.h>
#include <ebbtide/store/store.h>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace ebbtide::test {

/// All that a program showed: the gradients of every backward, and the text of every error that torch raised on the way.
struct GraphOutcome {
  std::vector<at::Tensor> gradients;
  std::vector<std::string> errors;
  int64_t steps = 0;  ///< of the forward
  int64_t left = 0;   ///< nodes that nobody frees: of a saved tensor that was written to later from what it went into
};

/// How a program runs: as torch alone runs it, or otherwise.
struct Treatment {
  Store* store = nullptr;    ///< where what autograd saves goes
  bool checkpoints = false;  ///< regions are called through checkpoint()
  struct Forced {
    int64_t step;
    Policy policy;
  };
  std::optional<Forced> forced;  ///< what one step of the forward saves is treated so, whatever the store would do
};

/// A forward of some tens of operations (activations, norms, softmax, dropout, products, matrix products, attention,
/// casts, views of all kinds, writes in place, branches, values that die early, and regions of such, nested too) over
/// tensors of several dtypes, layouts and shared storages; maybe a write to a parameter or a value; and a backward: once,
/// twice over a kept graph, for some inputs only, of two losses, of a gradient, or none. It decides by the seed and by
/// shapes, never by values, so that it does the same however it is treated.
///
/// The backward runs inside the store's scope or after it, as the seed says.
/// Threads: sets torch's seed, and so is to be run by one thread at a time.
GraphOutcome run_random_graph(uint64_t seed, const Treatment& treatment);

}  // namespace ebbtide::test
