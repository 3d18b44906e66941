// Memory of one size that is used again instead of being given back: for objects that come and go in every step.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

namespace ebbtide {

/// Grows to the most blocks in use at once. Threads: any. Nobody waits for more than a moment: where another thread is at
/// it for longer, or was at the fork that made this process, the heap serves.
/// Lifetime: ends when all who joined have left and all blocks are back.
class BlockCache {
 public:
  /// With one user, who leaves when done.
  static BlockCache* make() { return new BlockCache; }
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;

  void join() noexcept { count(+1); }
  void leave() noexcept { count(-1); }

  /// REQUIRES: always the same `bytes`, which hold a pointer at least.
  void* take(size_t bytes) {
    Free* block = nullptr;
    if (enter()) {
      block = free_;
      if (block != nullptr) free_ = block->next;
      prefetch(free_, bytes);
      ++users_;
      exit();
    } else {
      strays_.fetch_add(1);
    }
    if (block != nullptr) return block;
    try {
      return ::operator new(bytes);
    } catch (...) {
      leave();
      throw;
    }
  }
  void give(void* block) noexcept {
    if (!enter()) {
      ::operator delete(block);
      strays_.fetch_sub(1);
      return;
    }
    free_ = new (block) Free{free_};
    --users_;
    exit_or_end();
  }

 private:
  struct Free {
    Free* next;
  };

  static constexpr size_t kCacheLine = 64;
  static constexpr int kTries = 100;  // what others do here takes a few instructions

  BlockCache() = default;
  ~BlockCache() {
    while (free_ != nullptr) ::operator delete(std::exchange(free_, free_->next));
  }

  bool enter() noexcept {
    for (int tries = 0; tries < kTries; ++tries)
      if (!busy_.test(std::memory_order_relaxed) && !busy_.test_and_set(std::memory_order_acquire)) return true;
    return false;
  }
  void exit() noexcept { busy_.clear(std::memory_order_release); }
  /// With nobody left, nobody comes any more. Who could not enter ends nothing: if that was the last, memory is lost.
  void exit_or_end() noexcept {
    const bool last = users_ + strays_.load() == 0;
    exit();
    if (last) delete this;
  }

  void count(int64_t change) noexcept {
    if (!enter()) {
      strays_.fetch_add(change);
      return;
    }
    users_ += change;
    exit_or_end();
  }

  /// The next block is brought into the processor's cache: what writes to memory that is not there waits at the next lock.
  /// It was given back a step ago, a long time for a cache.
  static void prefetch(const Free* block, size_t bytes) noexcept {
    if (block == nullptr) return;
    for (size_t line = 0; line < bytes; line += kCacheLine)
      __builtin_prefetch(reinterpret_cast<const std::byte*>(block) + line, /*rw=*/1);
  }

  std::atomic_flag busy_;
  Free* free_ = nullptr;            // guarded by busy_, as users_
  int64_t users_ = 1;               // who joined, and blocks in use
  std::atomic<int64_t> strays_{0};  // the same, of those who could not enter
};

/// A BlockCache's user for as long as it lives.
class SharedBlockCache {
 public:
  SharedBlockCache() : cache_(BlockCache::make()) {}
  SharedBlockCache(const SharedBlockCache& other) noexcept : cache_(other.cache_) { cache_->join(); }
  SharedBlockCache& operator=(const SharedBlockCache&) = delete;
  ~SharedBlockCache() { cache_->leave(); }
  BlockCache& operator*() const noexcept { return *cache_; }

 private:
  BlockCache* const cache_;
};

/// For std::allocate_shared: copies cost nothing, since what is allocated keeps the cache alive by itself.
/// REQUIRES: the cache lives when something is allocated.
template <class T>
class BlockAllocator {
 public:
  using value_type = T;

  explicit BlockAllocator(const SharedBlockCache& cache) noexcept : cache_(&*cache) {}
  template <class U>
  BlockAllocator(const BlockAllocator<U>& other) noexcept : cache_(other.cache_) {}  // NOLINT: as the standard has it

  T* allocate(size_t) {
    static_assert(sizeof(T) >= sizeof(void*) && alignof(T) <= __STDCPP_DEFAULT_NEW_ALIGNMENT__);
    return static_cast<T*>(cache_->take(sizeof(T)));
  }
  void deallocate(T* block, size_t) noexcept { cache_->give(block); }

  template <class U>
  bool operator==(const BlockAllocator<U>& other) const noexcept {
    return cache_ == other.cache_;
  }

 private:
  template <class U>
  friend class BlockAllocator;
  BlockCache* cache_;
};

/// For containers of nodes, which ask for one object of one type at a time, and own their allocator.
template <class T>
class CachedAllocator {
 public:
  using value_type = T;

  CachedAllocator() = default;
  template <class U>
  CachedAllocator(const CachedAllocator<U>& other) noexcept : cache_(other.cache_) {}  // NOLINT: as the standard has it

  T* allocate(size_t) {
    static_assert(sizeof(T) >= sizeof(void*) && alignof(T) <= __STDCPP_DEFAULT_NEW_ALIGNMENT__);
    return static_cast<T*>((*cache_).take(sizeof(T)));
  }
  void deallocate(T* block, size_t) noexcept { (*cache_).give(block); }

  template <class U>
  bool operator==(const CachedAllocator<U>& other) const noexcept {
    return &*cache_ == &*other.cache_;
  }

 private:
  template <class U>
  friend class CachedAllocator;
  SharedBlockCache cache_;
};

}  // namespace ebbtide
