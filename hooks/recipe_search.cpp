#include <ebbtide/hooks/arithmetic.h>
#include <ebbtide/hooks/pass_through.h>
#include <ebbtide/hooks/recipe_search.h>
#include <ebbtide/hooks/saved_tensor.h>

#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/generated/Functions.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

namespace ebbtide {
namespace {

namespace gen = torch::autograd::generated;
using torch::autograd::Node;
using torch::autograd::SavedVariable;

// torch has no accessors for these. An explicit instantiation may name a member that is not public, and a change of the
// member fails to compile.
template <auto kMember>
struct HooksOf {
  friend const torch::autograd::SavedVariableHooks* hooks_in(const SavedVariable& variable) {
    return (variable.*kMember).get();
  }
};
template struct HooksOf<&SavedVariable::hooks_>;
const torch::autograd::SavedVariableHooks* hooks_in(const SavedVariable& variable);

template <auto kMember>
struct AbsenceOf {
  friend bool was_absent(const SavedVariable& variable) { return variable.*kMember; }
};
template struct AbsenceOf<&SavedVariable::was_default_constructed_>;
/// Not so of one that a backward has released.
bool was_absent(const SavedVariable& variable);

template <auto kMember>
struct MutexOf {
  friend std::mutex& mutex_in(Node& node) { return node.*kMember; }
};
template struct MutexOf<&Node::mutex_>;
std::mutex& mutex_in(Node& node);

/// Whether a redo, in memory of torch's allocator, reads it at the alignment at which it lay.
bool aligned(const Operand& operand) {
  if (operand.step) return std::ranges::all_of(operand.step->operands, aligned);
  return !operand.record || operand.view.remainder() == 0;
}

/// Not of a parameter that FSDP2 has freed: its storage was made smaller behind it.
bool has_its_bytes(const at::Tensor& tensor) {
  return ViewOfStorage::end_of(tensor).count() <= static_cast<int64_t>(tensor.storage().nbytes());
}

bool is_number(const at::Tensor& tensor) {
  return tensor.defined() && tensor.unsafeGetTensorImpl()->is_wrapped_number();
}

}  // namespace

/// One op of the search.
class RecipeSearch::Level final : public Ingredients {
 public:
  /// `same_bytes`: what this op makes is, as bytes, the result that is searched for.
  Level(RecipeSearch& search, Node& node, const RecipeRow& row, std::optional<at::IntArrayRef> strides, int depth,
        bool same_bytes)
      : search_(search), node_(node), row_(row), strides_(strides), depth_(depth), same_bytes_(same_bytes) {
    const auto& metadata = node.input_metadata(0);
    dtype_ = c10::typeMetaToScalarType(metadata.dtype());
    device_ = metadata.device();
    for (const c10::SymInt& size : metadata.shape_as_dim_vector()) {
      if (size.is_symbolic())
        refused_ = true;
      else
        sizes_.push_back(size.expect_int());
    }
    if (metadata.is_tensor_subclass() || metadata.is_nested_tensor() || device_ != search.result_.device()) refuse();
    note_geometry(sizes_, dtype_);
  }

  void saved(const SavedVariable& variable, size_t edge) override {
    if (refused_) return;
    Operand operand;
    switch (peek(variable, operand)) {
      case Found::kYes:
        if (auto weight = cast_of_a_parameter(operand, edge)) operand = std::move(*weight);
        return take(std::move(operand));
      case Found::kNowhere:
        return input(edge);
      case Found::kUnusable:
        return refuse();
    }
  }
  void saved_only(const SavedVariable& variable) override {
    if (refused_) return;
    Operand operand;
    if (peek(variable, operand) != Found::kYes) return refuse();
    take(std::move(operand));
  }
  void saved_or_none(const SavedVariable& variable) override {
    if (!was_absent(variable)) return saved_only(variable);
    if (!refused_) take({});
  }
  void input(size_t edge) override {
    if (refused_) return;
    if (auto operand = follow(edge))
      take(std::move(*operand));
    else
      refuse();
  }
  void input_or_none(size_t edge) override {
    if (edge < node_.num_outputs() && node_.next_edge(edge).is_valid()) return input(edge);
    if (!refused_) take({});
  }
  void refuse() override { refused_ = true; }

  at::Tensor value(size_t operand) override {
    return refused_ ? at::Tensor() : value_of(operands_.at(operand), search_.book_.cache());
  }
  std::optional<double> layer_norm_eps(const SavedVariable& weight) override {
    const auto* saved = dynamic_cast<const SavedTensor*>(hooks_in(weight));
    return saved != nullptr && is_plain(saved->passed_through()) ? search_.book_.layer_norm_eps(saved->passed_through())
                                                                 : std::nullopt;
  }
  at::IntArrayRef sizes() const override { return sizes_; }
  c10::ScalarType dtype() const override { return dtype_; }
  c10::Device device() const override { return device_; }
  std::optional<at::IntArrayRef> strides() const override { return strides_; }

  bool refused() const noexcept { return refused_; }
  std::vector<Operand>& operands() noexcept { return operands_; }

 protected:
  void note(std::string_view bytes) override {
    search_.site_.append(bytes);
    search_.site_.push_back('\0');
  }

 private:
  enum class Found { kYes, kNowhere, kUnusable };

  void note_geometry(at::IntArrayRef numbers, c10::ScalarType dtype) {
    note({reinterpret_cast<const char*>(&dtype), sizeof dtype});
    note({reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(int64_t)});
  }

  void take(Operand operand) {
    if (operand.record || operand.parameter) {
      scalar(operand.record ? 'R' : 'P');
      note_geometry(operand.view.sizes(), c10::typeMetaToScalarType(operand.view.dtype()));
      note_geometry(operand.view.strides(), dtype_);
      scalar(operand.view.offset());
    } else if (operand.copy.defined()) {
      scalar('C');
      scalar(is_number(operand.copy));
      note_geometry(operand.copy.sizes(), operand.copy.scalar_type());
      note_geometry(operand.copy.strides(), dtype_);
    } else {
      scalar(operand.step ? 'S' : 'N');
    }
    operands_.push_back(std::move(operand));
  }

  Found peek(const SavedVariable& variable, Operand& operand) {
    const auto* hooks = hooks_in(variable);
    if (hooks == nullptr) {
      const std::optional<at::Tensor> raw = variable.get_raw_data();
      if (!raw || !raw->defined()) return Found::kNowhere;
      if (!is_number(*raw)) return Found::kUnusable;
      operand.copy = *raw;
      return Found::kYes;
    }
    const auto* saved = dynamic_cast<const SavedTensor*>(hooks);
    if (saved == nullptr || !saved->unchanged()) return Found::kUnusable;
    // A redo runs under the arithmetic of now, the op ran under that.
    if (saved->arithmetic() != search_.arithmetic_) return Found::kUnusable;
    if (saved->record()) {
      operand = saved->operand();
      return Found::kYes;
    }
    const at::Tensor& tensor = saved->passed_through();
    if (!tensor.defined()) return Found::kUnusable;  // a wrapper, taken apart
    return copy(tensor, operand) || parameter(tensor, operand) ? Found::kYes : Found::kUnusable;
  }

  /// A small tensor may change before the redo: the recipe reads a copy.
  bool copy(const at::Tensor& tensor, Operand& operand) {
    if (!is_plain(tensor) || tensor.device() != device_ || tensor.is_complex() || !has_its_bytes(tensor)) return false;
    const Bytes bytes(static_cast<int64_t>(tensor.nbytes()));
    if (bytes > search_.copies_left_) return false;
    if (row_.costly && ViewOfStorage(tensor).remainder() != 0) return false;
    search_.copies_left_ -= bytes;
    operand.copy = tensor.clone();
    return operand.copy.strides() == tensor.strides();
  }

  bool parameter(const at::Tensor& tensor, Operand& operand) const {
    if (tensor.device() != device_ || !search_.book_.may_read(tensor)) return false;
    if (!has_its_bytes(tensor)) return false;
    operand.parameter = tensor.storage();
    operand.view = ViewOfStorage(tensor);
    operand.version = tensor.unsafeGetTensorImpl()->version_counter();
    operand.saved_version = operand.version.current_version();
    return true;
  }

  /// A weight that autocast has cast is saved, but held by autocast's cache as well until the forward ends: what rested
  /// on it would stay as long. Its bytes are what the cast makes of the parameter, if nobody has written to them.
  std::optional<Operand> cast_of_a_parameter(const Operand& saved, size_t edge) {
    if (!row_.costly || !saved.record || saved.saved_version != 0 || edge >= node_.num_outputs()) return std::nullopt;
    Node* cast = node_.next_edge(edge).function.get();
    std::vector<int64_t> strides = saved.view.strides().vec();
    const bool transposed = dynamic_cast<const gen::TBackward0*>(cast) != nullptr;  // as a linear layer reads it
    if (transposed) {
      cast = cast->next_edge(0).function.get();
      std::ranges::reverse(strides);
    }
    if (dynamic_cast<const gen::ToCopyBackward0*>(cast) == nullptr || depth_ + 1 >= kDeepest) return std::nullopt;
    const auto* leaf = dynamic_cast<const torch::autograd::AccumulateGrad*>(cast->next_edge(0).function.get());
    if (leaf == nullptr || !search_.book_.may_read(leaf->variable)) return std::nullopt;
    // Autocast goes on with a cast that it has, though the parameter was written to since.
    if (!search_.book_.unchanged_since(*cast, leaf->variable)) return std::nullopt;
    std::optional<Step> step = search_.step(*cast, strides, depth_ + 1, false);
    if (!step) return std::nullopt;
    if (transposed) step->redo = [make = std::move(step->redo)](std::span<const at::Tensor> v) { return make(v).t(); };
    step->result = ResultId::of(*node_.next_edge(edge).function, 0);
    Operand operand;
    operand.step = std::make_shared<const Step>(std::move(*step));
    return operand;
  }

  std::optional<Operand> follow(size_t index) {
    if (index >= node_.num_outputs()) return std::nullopt;
    const torch::autograd::Edge& edge = node_.next_edge(index);
    if (!edge.is_valid()) return std::nullopt;
    Node& producer = *edge.function;
    if (auto found = search_.book_.find(ResultId::of(producer, edge.input_nr))) return found;
    Operand operand;
    if (const auto* leaf = dynamic_cast<const torch::autograd::AccumulateGrad*>(&producer)) {
      const bool copied = copy(leaf->variable, operand);
      if (!copied && !parameter(leaf->variable, operand)) return std::nullopt;
      // What has a fingerprint need not be compared each time.
      const bool has_fingerprint = row_.costly || !copied;
      if (!has_fingerprint || !search_.book_.unchanged_since(node_, leaf->variable)) search_.sound_ = false;
      return operand;
    }
    if (edge.input_nr != 0 || depth_ + 1 >= kDeepest) return std::nullopt;
    std::optional<Step> step =
        search_.step(producer, std::nullopt, depth_ + 1, same_bytes_ && (row_.is_view || row_.is_alias));
    if (!step) return std::nullopt;
    operand.step = std::make_shared<const Step>(std::move(*step));
    return operand;
  }

  RecipeSearch& search_;
  Node& node_;
  const RecipeRow& row_;
  const std::optional<at::IntArrayRef> strides_;
  const int depth_;
  const bool same_bytes_;
  std::vector<int64_t> sizes_;
  c10::ScalarType dtype_{};
  c10::Device device_{c10::kCPU};
  bool refused_ = false;
  std::vector<Operand> operands_;
};

RecipeSearch::RecipeSearch(const RecipeBook& book, const at::Tensor& result, bool costly)
    : book_(book),
      result_(result),
      costly_(costly),
      arithmetic_(arithmetic_now(result.device().is_cpu())),
      copies_left_(static_cast<int64_t>(result.nbytes()) / 16) {}

std::optional<Step> RecipeSearch::run() {
  site_.assign(reinterpret_cast<const char*>(&arithmetic_), sizeof arithmetic_);
  const auto strides = result_.strides();
  site_.append(reinterpret_cast<const char*>(strides.data()), strides.size() * sizeof(int64_t));
  const auto node = result_.grad_fn();
  return step(*node, result_.strides(), 0, true);
}

std::optional<Step> RecipeSearch::step(Node& node, std::optional<at::IntArrayRef> strides, int depth, bool same_bytes) {
  const RecipeRow* row = recipe_row(node);
  if (row == nullptr || node.num_inputs() == 0) return std::nullopt;
  // One that is costly is not run again on the way to another, and not at each pack for a comparison.
  if (row->costly && (!costly_ || !same_bytes || ViewOfStorage(result_).remainder() != 0)) return std::nullopt;
  // Somebody's backward is at this node, and may release what it holds.
  const std::unique_lock lock(mutex_in(node), std::try_to_lock);
  if (!lock) return std::nullopt;
  if (depth > 0 && !row->is_view && !row->costly) sound_ = false;
  site_.append(row->name).push_back('\0');
  Level level(*this, node, *row, strides, depth, same_bytes);
  if (level.refused()) return std::nullopt;
  Redo redo = row->take(node, level);
  if (level.refused() || !redo) return std::nullopt;
  if (row->costly && !std::ranges::all_of(level.operands(), aligned)) return std::nullopt;
  const ResultId result = ResultId::of(node, 0);
  if (!same_bytes || !(row->is_view || row->is_alias))
    return Step{row->name, row->costly, result, std::move(level.operands()), std::move(redo)};
  // One step with what it is a view of: nobody else may hold the storage of a redo's result, RedoCache neither.
  const Operand& of = level.operands().at(0);
  if (!of.step) return std::nullopt;
  return Step{of.step->op, of.step->costly, result, of.step->operands,
              [view = std::move(redo), make = of.step->redo](std::span<const at::Tensor> values) {
                const at::Tensor made = make(values);
                return view({&made, 1});
              }};
}

}  // namespace ebbtide
