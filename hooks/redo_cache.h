// The last results that redos made on their way to others.
#pragma once

#include <ebbtide/hooks/recipe.h>

#include <ATen/core/Tensor.h>

#include <array>
#include <mutex>
#include <utility>

namespace ebbtide {

/// Three matmuls that read one norm cast what it made to bf16 each for itself: the norm is redone once. Of CPU tensors
/// only; on an accelerator the next redo may be on another stream. What records hold is not here: they are a cache
/// themselves.
///
/// Threads: any.
/// Lifetime: results are held until two others have come, or clear().
class RedoCache {
 public:
  /// Undefined where it is not there.
  at::Tensor find(const ResultId& result) const {
    std::lock_guard lock(mutex_);
    for (const auto& [id, value] : kept_)
      if (value.defined() && id == result) return value;
    return {};
  }
  void keep(const ResultId& result, const at::Tensor& value) {
    if (!value.device().is_cpu()) return;
    std::pair dropped{result, value};  // outside the lock
    std::lock_guard lock(mutex_);
    std::swap(kept_[next_++ % kept_.size()], dropped);
  }
  /// A forward or a backward has ended.
  void clear() {
    std::array<std::pair<ResultId, at::Tensor>, 2> dropped;
    std::lock_guard lock(mutex_);
    std::swap(kept_, dropped);
  }

 private:
  mutable std::mutex mutex_;
  std::array<std::pair<ResultId, at::Tensor>, 2> kept_;
  size_t next_ = 0;
};

}  // namespace ebbtide
