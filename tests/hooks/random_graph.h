// Random autograd programs, the same each time for a seed.
#pragma once

#include <ebbtide/store/store.h>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace ebbtide::test {

/// All that a program showed: the gradients of every backward, and the text of every error that torch raised on the way.
struct GraphOutcome {
  std::vector<at::Tensor> gradients;
  std::vector<std::string> errors;
  int64_t left = 0;  ///< nodes that nobody frees: of a saved tensor that was written to later from what it went into
};

/// A forward of some tens of operations (activations, norms, softmax, dropout, products, matrix products, attention,
/// casts, views of all kinds, writes in place, branches, values that die early) over tensors of several dtypes, layouts
/// and shared storages; maybe a write to a parameter or a value; and a backward: once, twice over a kept graph, for some
/// inputs only, of two losses, of a gradient, or none. It decides by the seed and by shapes, never by values, so that it
/// does the same with a store and without.
///
/// `store`: null, or where what autograd saves goes; the backward runs inside the scope or after it, as the seed says.
/// Threads: sets torch's seed, and so is to be run by one thread at a time.
GraphOutcome run_random_graph(uint64_t seed, Store* store);

}  // namespace ebbtide::test
