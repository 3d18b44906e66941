// The ops that can be run again: one row an op.
#pragma once

#include <ebbtide/hooks/recipe.h>
#include <ebbtide/pinned_pool/export.h>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace ebbtide {

/// What a row takes from a node: the op's operands, in the order in which its redo reads them, and its scalars. What
/// cannot be had leaves the op without a recipe.
class Ingredients {
 public:
  virtual ~Ingredients() = default;

  /// An operand that the node saved, or, since some are saved only where a gradient wants them, the one that its edge
  /// leads to.
  virtual void saved(const torch::autograd::SavedVariable& variable, size_t edge) = 0;
  /// What no edge leads to, as it is no input: a result of the node's own, or what it drew.
  virtual void saved_only(const torch::autograd::SavedVariable& variable) = 0;
  /// An optional one: where it is absent the redo gets an undefined tensor. Its edge is not followed.
  virtual void saved_or_none(const torch::autograd::SavedVariable& variable) = 0;
  /// One that the node did not save: found if it was saved by another node, and not written to since.
  virtual void input(size_t edge) = 0;
  /// An optional one that the node did not save.
  virtual void input_or_none(size_t edge) = 0;
  /// Says that there is no recipe.
  virtual void refuse() = 0;

  /// The tensor of an operand taken before, by place; undefined where it is not at hand.
  virtual at::Tensor value(size_t operand) = 0;

  /// The eps of the layer norm whose weight this is, where the store was told of it.
  virtual std::optional<double> layer_norm_eps(const torch::autograd::SavedVariable& weight) = 0;

  /// Scalars that the redo rests on, as part of what a call site is.
  template <class T>
  requires std::is_trivially_copyable_v<T>
  const T& scalar(const T& value) {
    note({reinterpret_cast<const char*>(&value), sizeof(T)});
    return value;
  }
  const std::string& scalar(const std::string& value) {
    note(value);
    return value;
  }
  c10::Scalar scalar(const c10::Scalar& value);

  /// Of the op's result.
  virtual at::IntArrayRef sizes() const = 0;
  virtual c10::ScalarType dtype() const = 0;
  virtual c10::Device device() const = 0;
  /// Not known of a result that nobody saved.
  virtual std::optional<at::IntArrayRef> strides() const = 0;

 protected:
  virtual void note(std::string_view bytes) = 0;
};

struct RecipeRow {
  const char* name;
  /// Whether the result is a view of the first operand.
  bool is_view = false;
  /// Whether the result lies in the first operand's storage, though torch counts writes to the two apart.
  bool is_alias = false;
  /// Whether a redo may take longer than a transfer. Such a one rounds by the alignment of what it reads and makes, too.
  bool costly = false;
  /// Takes what the op needs from its node.
  Redo (*take)(torch::autograd::Node& node, Ingredients& from);
};

/// Null for an op that is not in the table.
EBBTIDE_API const RecipeRow* recipe_row(const torch::autograd::Node& node);

/// All rows, for tests.
EBBTIDE_API std::span<const RecipeRow> recipe_rows();

}  // namespace ebbtide
