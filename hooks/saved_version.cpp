#include <ebbtide/hooks/saved_version.h>

#include <c10/util/Exception.h>
#include <c10/util/Type.h>
#include <torch/csrc/autograd/anomaly_mode.h>
#include <torch/csrc/autograd/function.h>

#include <sstream>
#include <string_view>

namespace ebbtide {
namespace {

template <class Node>
concept NamesItsOp = requires(const Node& node) {
  node.forward_op_name();
};

/// A node as torch's error calls it: by its own name, and in newer versions by its op's (Node::forward_op_name()), whose
/// number stays where it is not 0.
std::string name_in_errors(std::string_view name) {
  constexpr std::string_view kBackward = "Backward";
  const size_t at = name.rfind(kBackward);
  if (!NamesItsOp<torch::autograd::Node> || at == name.npos) return std::string(name);
  const std::string_view number = name.substr(at + kBackward.size());
  if (number.find_first_not_of("0123456789") != number.npos) return std::string(name);
  return std::string(name.substr(0, at)).append(number == "0" ? "" : number);
}

}  // namespace

void SavedVersion::note(const at::Tensor& tensor) {
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  version_ = impl.version_counter();
  saved_ = version_.enabled() ? version_.current_version() : 0;
  if (const auto& producer = tensor.grad_fn()) {
    producer_ = &typeid(*producer);
    c10::raw::weak_intrusive_ptr::incref(tensor.unsafeGetTensorImpl());
    tensor_ = decltype(tensor_)::reclaim(tensor.unsafeGetTensorImpl());
  }
}

std::string SavedVersion::producer_name() const {
  if (auto alive = tensor_.lock()) {
    const at::Tensor tensor(std::move(alive));
    if (tensor.grad_fn()) return tensor.grad_fn()->name();
  }
  // As the nodes that torch generates name themselves; others go by their whole type.
  const std::string name = c10::demangle(producer_->name());
  constexpr std::string_view kGenerated = "torch::autograd::generated::";
  return name.starts_with(kGenerated) ? name.substr(kGenerated.size()) : name;
}

void SavedVersion::raise(const std::string& described) const {
  // In torch's words (torch/csrc/autograd/saved_variable.cpp).
  std::ostringstream message;
  message << "one of the variables needed for gradient computation has been modified by an inplace operation: ["
          << described << "]";
  // Torch counts the outputs of no tensor that its consumer saved.
  if (producer_ != nullptr) message << ", which is output 0 of " << name_in_errors(producer_name()) << ",";
  message << " is at version " << version_.current_version() << "; expected version " << saved_ << " instead.";
  if (torch::autograd::AnomalyMode::is_enabled())
    message << " Hint: the backtrace further above shows the operation that failed to compute its gradient. The "
               "variable in question was changed in there or "
               "anywhere later. Good luck!";
  else
    message << " Hint: enable anomaly detection to find the operation that failed to compute its gradient, with "
               "torch.autograd.set_detect_anomaly(True, check_nan=False).";
  C10_THROW_ERROR(Error, message.str());
}

}  // namespace ebbtide
