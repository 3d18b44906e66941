// Sub-allocation inside slabs: a private jemalloc arena.
#pragma once

#include <ebbtide/pinned_pool/result.h>
#include <ebbtide/pinned_pool/slab.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>

namespace ebbtide::pinned_pool {

/// A slab with the number that its pool gave it.
struct NumberedSlab {
  Slab slab;
  uint32_t number = 0;
};

/// Of the private one.
std::string jemalloc_version();

/// Allocates inside slabs of one size on one node, all pushed in from outside: it maps nothing itself, but for what
/// jemalloc needs for its own metadata.
///
/// Inside jemalloc's growth hook every thread of the arena would wait for pages to be pinned. So the hook only hands
/// over a slab that is ready or refuses; the caller makes one, pushes it and tries again.
///
/// Threads:  all methods from any.
/// Lifetime: REQUIRES: nothing is allocated when destroyed. Its slabs go with it.
class Arena {
 public:
  /// `slab_bytes`: a power of two, at least 2 MiB: a size class of jemalloc, so that every growth is exactly one slab.
  /// Errors: kUnsupported with jemalloc's reason.
  static Result<std::unique_ptr<Arena>> create(size_t slab_bytes);
  ~Arena();

  struct Allocation {
    std::byte* data;
    uint32_t slab;       ///< its number
    const Slab* memory;  ///< while this is not deallocated
  };
  /// `bytes` <= slab_bytes, aligned to the system's pages, inside one slab. Uses a ready slab if it must. None: push a
  /// slab and try again.
  std::optional<Allocation> allocate(size_t bytes) noexcept;
  void deallocate(std::byte* data) noexcept;

  void push(NumberedSlab slab);
  /// Takes back a slab that was never used, or not since recycle().
  std::optional<NumberedSlab> pop_ready() noexcept;
  bool has_ready() const noexcept;

  /// Slabs that pop_ready() can take, after recycle() where nothing is allocated.
  size_t idle_slabs() const noexcept;

  /// If nothing is allocated, makes all slabs ready ones. jemalloc gives no single slab back once it has it.
  void recycle() noexcept;

  /// How often a ready slab went into use.
  uint64_t growths() const noexcept { return growths_.load(std::memory_order_relaxed); }

 private:
  struct Hooks;
  struct Held {
    NumberedSlab slab;
    bool ready = true;  ///< jemalloc does not have it
  };
  explicit Arena(size_t slab_bytes);
  Status open_jemalloc_arena();
  void prime() noexcept;
  std::map<const std::byte*, Held>::const_iterator find_locked(const std::byte* data) const noexcept;

  const size_t slab_bytes_;
  const std::unique_ptr<Hooks> hooks_;

  /// Shared: allocating. Exclusive: replacing or priming the jemalloc arena. Comes before jemalloc's own locks and
  /// slabs_mutex_.
  std::shared_mutex gate_;
  unsigned index_ = 0;  ///< jemalloc's number of the arena
  bool open_ = false;   ///< false: jemalloc refused to make another arena, nothing can be allocated
  std::atomic<bool> primed_ = false;

  std::atomic<int64_t> live_ =
      0;  ///< allocations; goes down only after jemalloc is done with one, so that zero means idle
  std::atomic<uint64_t> growths_ = 0;

  /// Guards held_. Taken by the hooks inside jemalloc's locks: call nothing of jemalloc under it.
  mutable std::mutex slabs_mutex_;
  std::map<const std::byte*, Held> held_;
};

}  // namespace ebbtide::pinned_pool
