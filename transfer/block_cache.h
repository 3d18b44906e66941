// Memory of one size that is used again instead of being given back: for objects that come and go in every step.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

namespace ebbtide {

/// Grows to the most blocks in use at once. Threads: any. Nobody waits: while another thread is at it, or was at the
/// fork that made this process, the heap serves.
/// Lifetime: ends when all who joined have left and all blocks are back.
class BlockCache {
 public:
  /// With one user, who leaves when done.
  static BlockCache* make() { return new BlockCache; }
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;

  void join() noexcept { users_.fetch_add(1, std::memory_order_relaxed); }
  void leave() noexcept {
    if (users_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  /// REQUIRES: always the same `bytes`, which hold a pointer at least.
  void* take(size_t bytes) {
    void* block = cached(bytes);
    if (block == nullptr) block = ::operator new(bytes);
    join();
    return block;
  }
  void give(void* block) noexcept {
    if (busy_.test_and_set(std::memory_order_acquire)) {
      ::operator delete(block);
    } else {
      free_ = new (block) Free{free_};
      busy_.clear(std::memory_order_release);
    }
    leave();
  }

 private:
  struct Free {
    Free* next;
  };

  static constexpr size_t kCacheLine = 64;

  BlockCache() = default;
  ~BlockCache() {
    while (free_ != nullptr) ::operator delete(std::exchange(free_, free_->next));
  }

  /// The block after it is brought into the processor's cache meanwhile: what writes to memory that is not there waits at
  /// the next lock. It was given back a step ago, a long time for a cache.
  void* cached(size_t bytes) noexcept {
    if (busy_.test_and_set(std::memory_order_acquire)) return nullptr;
    Free* block = free_;
    if (block != nullptr) {
      free_ = block->next;
      for (size_t line = 0; free_ != nullptr && line < bytes; line += kCacheLine)
        __builtin_prefetch(reinterpret_cast<const std::byte*>(free_) + line, /*rw=*/1);
    }
    busy_.clear(std::memory_order_release);
    return block;
  }

  std::atomic<int64_t> users_{1};
  std::atomic_flag busy_;
  Free* free_ = nullptr;  // guarded by busy_
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
