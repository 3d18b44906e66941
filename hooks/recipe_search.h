// From a node of the graph to the records that its op can be run again from.
#pragma once

#include <ebbtide/hooks/recipe_book.h>
#include <ebbtide/hooks/recipe_table.h>
#include <ebbtide/pinned_pool/bytes.h>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace ebbtide {

/// One search, for one result. Uses the node while it lasts and keeps nothing of it.
/// Threads: one. Another thread's backward may release what the node holds: then there is no recipe.
class RecipeSearch {
 public:
  /// `costly`: ops that are not cheap may be run again too.
  RecipeSearch(const RecipeBook& book, const at::Tensor& result, bool costly);

  std::optional<Step> run();

  /// After run(): all that the bits may rest on but the values, as bytes: ops, scalars, geometry, arithmetic.
  const std::string& site() const noexcept { return site_; }
  /// After run(): whether all that is read is known to be what the op read. Not so for a result that nobody saved,
  /// which may have been written to between two ops, nor for a parameter that no node saved.
  bool sound() const noexcept { return sound_; }

 private:
  class Level;
  static constexpr int kDeepest = 6;  // ops

  std::optional<Step> step(torch::autograd::Node& node, std::optional<at::IntArrayRef> strides, int depth,
                           bool same_bytes);

  const RecipeBook& book_;
  const at::Tensor& result_;
  const bool costly_;
  const uint64_t arithmetic_;
  Bytes copies_left_;  // of operands that are no records: of little use, were they as large as the result
  std::string site_;
  bool sound_ = true;
};

}  // namespace ebbtide
