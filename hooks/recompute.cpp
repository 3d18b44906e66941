#include <ebbtide/hooks/accelerators.h>
#include <ebbtide/hooks/error_translation.h>
#include <ebbtide/hooks/recompute.h>
#include <ebbtide/store/error.h>

#include <ATen/SequenceNumber.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/function.h>

#include <exception>
#include <utility>

namespace ebbtide {
namespace {

constexpr const char* kTip =
    "The function must do the same each time it runs. Something that it reads has changed since, or it draws from a "
    "generator of its own.";

/// The tensor without its history: with it, a result would keep the node that keeps it here.
at::Tensor without_history(const at::Tensor& tensor) {
  return tensor.requires_grad() && !tensor.is_leaf() ? tensor.detach() : tensor;
}

}  // namespace

/// A backward inside the function unpacks what is saved now.
class Recompute::Hooks final : public torch::autograd::SavedVariableHooks {
 public:
  explicit Hooks(Recompute& recompute) : recompute_(&recompute) {}
  void call_pack_hook(const at::Tensor& tensor) override {
    value_ = without_history(tensor);
    std::exchange(recompute_, nullptr)->pack(tensor, value_);
  }
  at::Tensor call_unpack_hook() override { return value_; }

 private:
  Recompute* recompute_;  // until the pack
  at::Tensor value_;
};

Recompute::Recompute(CheckpointFrame& frame, std::vector<bool> wanted)
    : HookSource(frame.store_),
      frame_(frame),
      wanted_(std::move(wanted)),
      values_(wanted_.size()),
      streams_(wanted_.size(), kHostStream) {
  for (size_t place = 0; place < wanted_.size(); ++place)
    if (wanted_[place]) last_ = place;
}

std::unique_ptr<torch::autograd::SavedVariableHooks> Recompute::make() {
  return std::make_unique<Hooks>(*this);
}

void Recompute::stop() {
  stopped_ = true;
  translated([]() -> void {
    throw Error(ErrorCode::kStopped, "ebbtide: a region that runs again has made all that is wanted of it");
  });
  std::terminate();  // not reached: the error passes
}

void Recompute::pack(const at::Tensor& tensor, const at::Tensor& value) {
  if (ended_) stop();
  const size_t place = next_++;
  if (place >= wanted_.size()) {
    if (!frame_.complete_) return;  // a backward inside the function: the first run has not come so far yet
    translated([] {
      throw CheckpointError(std::string("ebbtide.checkpoint: trying to save more tensors during recomputation than "
                                        "during the original forward pass.\n") +
                            kTip);
    });
  }
  if (wanted_[place]) {
    Look before;
    ViewOfStorage view;
    size_t storage_bytes = 0;
    {
      const std::lock_guard lock(frame_.mutex_);
      const auto& entry = frame_.entries_[place];
      before = entry.look;
      view = entry.view;
      storage_bytes = entry.storage_bytes;
    }
    const Look now(tensor);
    if (now != before) {
      mismatches_ += "tensor at position " + std::to_string(place) + ":\nsaved metadata: " + before.text() +
                     "\nrecomputed metadata: " + now.text() + "\n";
    } else if (storage_bytes != 0 &&
               (tensor.storage().nbytes() != storage_bytes || !ViewOfStorage(tensor).same_layout(view))) {
      mismatches_ += "tensor at position " + std::to_string(place) +
                     ": it lies in memory in another way (strides, or its place in its storage)\n";
    } else {
      values_[place] = value;
      if (!tensor.device().is_cpu() && storage_bytes != 0) streams_[place] = current_stream(tensor.device());
    }
  }
  if (!tensor.requires_grad()) may_be_filled_by_ = at::sequence_number::peek() - 1;
  if (place != last_ || frame_.runs_to_its_end_) return;
  if (all_is_filled(tensor)) stop();
  ended_ = true;
}

/// An op may save what it is about to fill (the noise of rrelu), but not what has a history: another op has made that. All
/// that was saved earlier is filled where this history goes as far.
bool Recompute::all_is_filled(const at::Tensor& last) const {
  if (!may_be_filled_by_) return true;
  const auto& producer = last.grad_fn();
  return producer && producer->sequence_nr() >= *may_be_filled_by_;
}

void Recompute::run(const std::vector<at::Tensor>& inputs) {
  const c10::AutoGradMode with_grad(true);
  try {
    frame_.again_(inputs);
  } catch (...) {
    if (!stopped_) throw;
  }
  if (next_ <= last_)
    throw CheckpointError(
        "ebbtide.checkpoint: A different number of tensors was saved during the original forward and recomputation.\n"
        "Number of tensors saved during forward: " +
        std::to_string(wanted_.size()) + "\nNumber of tensors saved during recomputation: " + std::to_string(next_) +
        ".\n" + kTip);
  if (!mismatches_.empty())
    throw CheckpointError(
        "ebbtide.checkpoint: Recomputed values for the following tensors have different metadata than during the "
        "forward pass.\n" +
        mismatches_ + kTip);
}

}  // namespace ebbtide
