// Memory of one size that is used again instead of being given back: for objects that come and go in every step.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

namespace ebbtide {

/// Grows to the most blocks in use at once. Threads: any. Lock: a leaf, and never waited for: while another thread holds
/// it, or held it at the fork that made this process, the heap serves.
class BlockCache {
 public:
  BlockCache() = default;
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;
  ~BlockCache() {
    while (free_ != nullptr) ::operator delete(std::exchange(free_, free_->next));
  }

  /// REQUIRES: always the same `bytes`, which hold a pointer at least.
  void* take(size_t bytes) {
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock && free_ != nullptr)
      return std::exchange(free_, free_->next);
    return ::operator new(bytes);
  }
  void give(void* block) noexcept {
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock)
      free_ = new (block) Free{free_};
    else
      ::operator delete(block);
  }

 private:
  struct Free {
    Free* next;
  };
  std::mutex mutex_;
  Free* free_ = nullptr;  // guarded by mutex_
};

/// For containers of nodes and std::allocate_shared, which ask for one object of one type at a time. What was allocated
/// keeps the cache alive.
template <class T>
class CachedAllocator {
 public:
  using value_type = T;

  CachedAllocator() : cache_(std::make_shared<BlockCache>()) {}
  template <class U>
  CachedAllocator(const CachedAllocator<U>& other) noexcept : cache_(other.cache_) {}  // NOLINT: as the standard has it

  T* allocate(size_t) {
    static_assert(sizeof(T) >= sizeof(void*) && alignof(T) <= __STDCPP_DEFAULT_NEW_ALIGNMENT__);
    return static_cast<T*>(cache_->take(sizeof(T)));
  }
  void deallocate(T* block, size_t) noexcept { cache_->give(block); }

  template <class U>
  bool operator==(const CachedAllocator<U>& other) const noexcept {
    return cache_ == other.cache_;
  }

 private:
  template <class U>
  friend class CachedAllocator;
  std::shared_ptr<BlockCache> cache_;
};

}  // namespace ebbtide
