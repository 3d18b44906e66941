// The last results that redos made on their way to others.
#pragma once

#include <ebbtide/hooks/recipe.h>
#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/store/store_core.h>

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>

namespace ebbtide {

/// Three matmuls that read one norm cast what it made to bf16 each for itself: the norm is redone once. What the norm
/// scaled is saved too, and its node asks for it just after the matmuls': it is redone once as well. Of CPU tensors only;
/// on an accelerator the next redo may be on another stream.
///
/// Threads: any.
/// Lifetime: results are held until two others have come, or clear(). They count as the core's recipe bytes. Used while
/// the core lives.
class RedoCache {
 public:
  explicit RedoCache(StoreCore& core) noexcept : core_(core) {}

  /// Undefined where it is not there.
  at::Tensor find(const ResultId& result) const {
    std::lock_guard lock(mutex_);
    for (const Kept& kept : kept_)
      if (kept.result == result) return kept.value;
    return {};
  }
  void keep(const ResultId& result, const at::Tensor& value) { keep(Kept{result, value}); }
  /// What was made again for a record: it is dropped by nobody while it is held here, and the record is asked for it.
  void hold(const at::Tensor& value) { keep(Kept{std::nullopt, value}); }

  /// A forward or a backward has ended.
  void clear() {
    std::array<Kept, 2> dropped;
    std::lock_guard lock(mutex_);
    std::swap(kept_, dropped);
    for (const Kept& kept : dropped) core_.note_recipe_bytes(Bytes(0) - bytes_of(kept));
  }

 private:
  struct Kept {
    std::optional<ResultId> result;
    at::Tensor value;
  };

  void keep(Kept next) {
    if (!next.value.device().is_cpu()) return;
    const Bytes more = bytes_of(next);  // `next` is dropped outside the lock
    std::lock_guard lock(mutex_);
    std::swap(kept_[next_++ % kept_.size()], next);
    core_.note_recipe_bytes(more - bytes_of(next));
  }
  static Bytes bytes_of(const Kept& kept) {
    return kept.value.defined() ? Bytes(static_cast<int64_t>(kept.value.nbytes())) : Bytes(0);
  }

  StoreCore& core_;
  mutable std::mutex mutex_;
  std::array<Kept, 2> kept_;
  size_t next_ = 0;
};

}  // namespace ebbtide
