// A registrar that keeps account instead of pinning.
#pragma once

#include <ebbtide/pinned_pool/host_registrar.h>

#include <map>
#include <mutex>

namespace ebbtide::test {

class FakeRegistrar final : public HostRegistrar {
 public:
  Status pin(void* data, size_t bytes) noexcept override {
    const std::lock_guard lock(mutex_);
    if (refuses_) return Failure{FailureCode::kUnsupported, 0, "the fake device is out of registrations"};
    pinned_[data] = bytes;
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
    }
  }

  void refuse(bool refuses) {
    const std::lock_guard lock(mutex_);
    refuses_ = refuses;
  }
  size_t pinned() const {
    const std::lock_guard lock(mutex_);
    return pinned_.size();
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
    auto after = pinned_.upper_bound(const_cast<void*>(data));
    if (after == pinned_.begin()) return false;
    const auto& [start, length] = *--after;
    return static_cast<const char*>(data) + bytes <= static_cast<const char*>(start) + length;
  }

 private:
  mutable std::mutex mutex_;
  std::map<void*, size_t> pinned_;
  bool refuses_ = false;
  int unpins_ = 0;
  int mismatches_ = 0;
};

}  // namespace ebbtide::test
