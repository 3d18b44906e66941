#include <ebbtide/hooks/checkpoint.h>
#include <ebbtide/hooks/checkpoint_frame.h>
#include <ebbtide/hooks/collective_watch.h>
#include <ebbtide/hooks/engine.h>
#include <ebbtide/hooks/hook_source.h>
#include <ebbtide/hooks/scope.h>

#include <ATen/SavedTensorHooks.h>
#include <c10/core/GradMode.h>

#include <chrono>
#include <optional>
#include <utility>

namespace ebbtide {
namespace {

/// The store that takes what is saved in a region that begins now.
std::shared_ptr<StoreCore> store_here() {
  if (in_forked_child()) return nullptr;
  const Scope* scope = Scope::current();
  HookSource* source = HookSource::current();
  const size_t python_hooks = at::SavedTensorDefaultHooks::get_tls_state().stack.size();
  if (source != nullptr && source->comes_before(scope))
    return python_hooks > source->python_hooks_outside() ? nullptr : source->takes();
  if (scope == nullptr || python_hooks > scope->python_hooks_outside()) return nullptr;
  return scope->core()->accepts_packs() ? scope->core() : nullptr;
}

}  // namespace

class CheckpointedRun::Source final : public HookSource {
 public:
  Source(std::shared_ptr<CheckpointFrame> frame, Collectives collectives)
      : HookSource(frame->store()), frame_(std::move(frame)) {
    // Without a store it runs again in every process, whatever it ran.
    if (frame_->store() && collectives != Collectives::kNone) watch_.emplace();
  }

  std::unique_ptr<torch::autograd::SavedVariableHooks> make() override {
    if (watch_ && watch_->seen()) frame_->ran_collective();
    return std::make_unique<CheckpointedTensor>(frame_);
  }
  std::shared_ptr<StoreCore> takes() const noexcept override { return frame_->store(); }

  void finish(bool ran_collective) {
    ran_collective |= watch_ && watch_->seen();
    frame_->complete(std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count(), !ran_collective);
  }

 private:
  const std::shared_ptr<CheckpointFrame> frame_;
  std::optional<CollectiveWatch> watch_;
  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
};

CheckpointedRun::CheckpointedRun(const std::vector<at::Tensor>& inputs,
                                 std::function<void(const std::vector<at::Tensor>&)> again, Collectives collectives) {
  if (!c10::GradMode::is_enabled()) return;
  install_engine();
  const bool at_once =
      collectives == Collectives::kNone || (collectives == Collectives::kWatched && !CollectiveWatch::expected());
  source_ = std::make_unique<Source>(std::make_shared<CheckpointFrame>(inputs, std::move(again), store_here(), at_once),
                                     collectives);
}

CheckpointedRun::~CheckpointedRun() = default;

void CheckpointedRun::finish(bool ran_collective) {
  if (!source_) return;
  source_->finish(ran_collective);
  source_ = nullptr;
}

}  // namespace ebbtide
