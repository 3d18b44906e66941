// A registrar that keeps account instead of pinning.
#pragma once

#include <ebbtide/pinned_pool/host_registrar.h>

#include <cstddef>
#include <limits>
#include <map>
#include <mutex>

namespace ebbtide::test {

class FakeRegistrar final : public HostRegistrar {
 public:
  Status pin(void* data, size_t bytes) noexcept override {
    const std::lock_guard lock(mutex_);
    ++pins_;
    if (refuses_ || bytes > most_at_once_ || bytes > most_in_total_ - total_)
      return Failure{FailureCode::kUnsupported, 0, "the fake device is out of registrations"};
    pinned_[data] = bytes;
    total_ += bytes;
    return success();
  }
  void unpin(void* data, size_t bytes) noexcept override {
    const std::lock_guard lock(mutex_);
    ++unpins_;
    const auto found = pinned_.find(data);
    if (found == pinned_.end() || found->second != bytes) {
      ++mismatches_;
    } else {
      pinned_.erase(found);
      total_ -= bytes;
    }
  }

  void refuse(bool refuses) {
    const std::lock_guard lock(mutex_);
    refuses_ = refuses;
  }
  /// As WSL and some hosts do.
  void limit(size_t at_once, size_t in_total = std::numeric_limits<size_t>::max()) {
    const std::lock_guard lock(mutex_);
    most_at_once_ = at_once;
    most_in_total_ = in_total;
  }
  size_t pinned() const {
    const std::lock_guard lock(mutex_);
    return pinned_.size();
  }
  size_t pinned_bytes() const {
    const std::lock_guard lock(mutex_);
    return total_;
  }
  int pins() const {
    const std::lock_guard lock(mutex_);
    return pins_;
  }
  int unpins() const {
    const std::lock_guard lock(mutex_);
    return unpins_;
  }
  int mismatches() const {
    const std::lock_guard lock(mutex_);
    return mismatches_;
  }
  /// Whether [data, data + bytes) lies inside one registration.
  bool covers(const void* data, size_t bytes) const {
    const std::lock_guard lock(mutex_);
    return bytes <= covered_locked(data);
  }
  /// Whether none of [data, data + bytes) lies in a registration.
  bool misses(const void* data, size_t bytes) const {
    const std::lock_guard lock(mutex_);
    const auto next = pinned_.lower_bound(const_cast<void*>(data));
    const bool before = next == pinned_.end() || static_cast<const char*>(data) + bytes <= next->first;
    return before && covered_locked(data) == 0;
  }

 private:
  /// From `data` to the end of its registration.
  size_t covered_locked(const void* data) const {
    auto after = pinned_.upper_bound(const_cast<void*>(data));
    if (after == pinned_.begin()) return 0;
    const auto& [start, length] = *--after;
    const auto offset = static_cast<size_t>(static_cast<const char*>(data) - static_cast<const char*>(start));
    return offset < length ? length - offset : 0;
  }

  mutable std::mutex mutex_;
  std::map<void*, size_t> pinned_;
  bool refuses_ = false;
  size_t most_at_once_ = std::numeric_limits<size_t>::max();
  size_t most_in_total_ = std::numeric_limits<size_t>::max();
  size_t total_ = 0;
  int pins_ = 0;
  int unpins_ = 0;
  int mismatches_ = 0;
};

}  // namespace ebbtide::test
