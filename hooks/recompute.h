// A region's function running again: what it saves is what was saved before.
#pragma once

#include <ebbtide/hooks/checkpoint_frame.h>
#include <ebbtide/hooks/hook_source.h>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace ebbtide {

/// Collects what is wanted, by its place in the order of saving, and stops the function after the last of it.
/// Threads: one.
class Recompute final : public HookSource {
 public:
  /// `wanted`: by place; one at least.
  Recompute(CheckpointFrame& frame, std::vector<bool> wanted);

  std::unique_ptr<torch::autograd::SavedVariableHooks> make() override;
  /// Regions inside are not the store's: what they save now was counted when it was saved first.
  std::shared_ptr<StoreCore> takes() const noexcept override { return nullptr; }

  /// Runs the function. Errors: the function's; CheckpointError.
  void run(const std::vector<at::Tensor>& inputs);

  /// By place; undefined where it was not wanted.
  const std::vector<at::Tensor>& values() const noexcept { return values_; }
  StreamId stream(size_t place) const noexcept { return streams_[place]; }

 private:
  class Hooks;
  void pack(const at::Tensor& tensor, const at::Tensor& value);
  [[noreturn]] void stop();
  bool all_is_filled(const at::Tensor& last) const;

  CheckpointFrame& frame_;
  const std::vector<bool> wanted_;
  size_t last_ = 0;
  size_t next_ = 0;
  bool stopped_ = false;
  bool ended_ = false;  // the last was saved, but the op that saved it may have something to fill yet
  // The node that was under construction when a tensor without a history was saved last.
  std::optional<uint64_t> may_be_filled_by_;
  std::string mismatches_;
  std::vector<at::Tensor> values_;
  std::vector<StreamId> streams_;
};

}  // namespace ebbtide
