#include <ebbtide/pinned_pool/arena.h>

#include <ebbtide/pinned_pool/page.h>

#include <jemalloc/jemalloc.h>
#include <sys/mman.h>

#include <cassert>
#include <cstring>
#include <iterator>
#include <string>

namespace ebbtide::pinned_pool {
namespace {

/// Not in jemalloc's public header: the argument of "experimental.arenas_create_ext" in 5.3.0 (arena_types.h there).
struct ArenaConfig {
  extent_hooks_t* extent_hooks;
  bool metadata_use_hooks;
};

Failure jemalloc_failure(const std::string& call, int error) {
  return Failure{FailureCode::kUnsupported, error, "jemalloc refused " + call + ": " + std::strerror(error)};
}

/// How an arena is allocated from.
int flags_of(unsigned index) {
  return static_cast<int>(MALLOCX_ARENA(index)) | MALLOCX_TCACHE_NONE | static_cast<int>(MALLOCX_ALIGN(page_bytes()));
}

/// Forgets all that the arena has, without touching it.
bool destroy_jemalloc_arena(unsigned index) {
  return ebbtide_je_mallctl(("arena." + std::to_string(index) + ".destroy").c_str(), nullptr, nullptr, nullptr, 0) == 0;
}

}  // namespace

std::string jemalloc_version() {
  const char* version = nullptr;
  size_t bytes = sizeof version;
  if (ebbtide_je_mallctl("version", &version, &bytes, nullptr, 0) != 0) return "unknown";
  return version;
}

/// What jemalloc calls back, under its locks.
struct Arena::Hooks : extent_hooks_t {
  Arena* arena = nullptr;

  /// Hands over a ready slab. Refuses everything but whole slabs: jemalloc tries a failed growth again with the exact
  /// size, and to grant that would fill the pool with tiny registrations. But for its own records, which it alone wants
  /// aligned to a huge page: left to it, they would stay mapped for good when the arena is destroyed (opt.retain).
  static void* hand_over(extent_hooks_t* hooks, void* at, size_t size, size_t alignment, bool* zero, bool* commit,
                         unsigned) noexcept {
    Arena& arena = *static_cast<Hooks*>(hooks)->arena;
    if (at == nullptr && alignment == kHugePage) {
      *zero = *commit = true;
      return map_aligned(size);
    }
    if (at != nullptr || size != arena.slab_bytes_ || alignment > kHugePage) return nullptr;
    const std::lock_guard lock(arena.slabs_mutex_);
    for (auto& [data, held] : arena.held_) {
      if (!held.ready) continue;
      held.ready = false;
      arena.growths_.fetch_add(1, std::memory_order_relaxed);
      *zero = false;
      *commit = true;
      return held.slab.slab.data();
    }
    return nullptr;
  }

  /// Its records; slabs are not jemalloc's to unmap.
  static bool unmap(extent_hooks_t* hooks, void* data, size_t size, bool, unsigned) noexcept {
    const Arena& arena = *static_cast<Hooks*>(hooks)->arena;
    {
      const std::lock_guard lock(arena.slabs_mutex_);
      const auto after = arena.held_.upper_bound(static_cast<std::byte*>(data));
      if (after != arena.held_.begin() && data < std::prev(after)->first + arena.slab_bytes_) return true;
    }
    return ::munmap(data, size) != 0;
  }

  static bool may_split(extent_hooks_t*, void*, size_t, size_t, size_t, bool, unsigned) noexcept {
    return false;
  }  // false: done

  /// Never across slabs, though they may be neighbours: a copy that spans two registrations is an error in CUDA, and
  /// EFAULT in io_uring.
  static bool may_merge(extent_hooks_t* hooks, void* a, size_t a_bytes, void* b, size_t b_bytes, bool,
                        unsigned) noexcept {
    const Arena& arena = *static_cast<Hooks*>(hooks)->arena;
    const std::lock_guard lock(arena.slabs_mutex_);
    const auto held = arena.find_locked(static_cast<std::byte*>(a));
    const std::byte* end = held->first + arena.slab_bytes_;
    const bool inside = static_cast<std::byte*>(a) + a_bytes <= end && static_cast<std::byte*>(b) + b_bytes <= end;
    return !inside;
  }
};

Arena::Arena(size_t slab_bytes) : slab_bytes_(slab_bytes), hooks_(std::make_unique<Hooks>()) {
  static_cast<extent_hooks_t&>(*hooks_) = {};  // what is null refuses: decommit, purge
  hooks_->arena = this;
  hooks_->alloc = &Hooks::hand_over;
  hooks_->dalloc = &Hooks::unmap;
  hooks_->split = &Hooks::may_split;
  hooks_->merge = &Hooks::may_merge;
}

Result<std::unique_ptr<Arena>> Arena::create(size_t slab_bytes) {
  std::unique_ptr<Arena> arena(new Arena(slab_bytes));
  if (Status status = arena->open_jemalloc_arena(); !status) return std::move(status).failure();
  return arena;
}

Status Arena::open_jemalloc_arena() {
  ArenaConfig config{hooks_.get(), true};
  size_t index_bytes = sizeof index_;
  if (const int error =
          ebbtide_je_mallctl("experimental.arenas_create_ext", &index_, &index_bytes, &config, sizeof config)) {
    return jemalloc_failure("a new arena", error);
  }
  open_ = true;
  size_t limit = slab_bytes_;
  const std::string name = "arena." + std::to_string(index_) + ".retain_grow_limit";
  if (const int error = ebbtide_je_mallctl(name.c_str(), nullptr, nullptr, &limit, sizeof limit))
    return jemalloc_failure(name, error);
  return success();
}

Arena::~Arena() {
  assert(live_.load() == 0);
  if (open_) (void)destroy_jemalloc_arena(index_);
}

std::optional<Arena::Allocation> Arena::allocate(size_t bytes) noexcept {
  if (!primed_.load(std::memory_order_acquire)) prime();
  const std::shared_lock gate(gate_);
  if (!open_) return std::nullopt;
  live_.fetch_add(1, std::memory_order_relaxed);
  auto* data = static_cast<std::byte*>(ebbtide_je_mallocx(bytes, flags_of(index_)));
  if (data == nullptr) {
    live_.fetch_sub(1, std::memory_order_release);
    return std::nullopt;
  }
  const std::lock_guard lock(slabs_mutex_);
  const NumberedSlab& from = find_locked(data)->second.slab;
  return Allocation{data, from.number, &from.slab};
}

void Arena::deallocate(std::byte* data) noexcept {
  ebbtide_je_dallocx(data, MALLOCX_TCACHE_NONE);
  live_.fetch_sub(1, std::memory_order_release);
}

/// jemalloc grows in steps that get larger. One allocation of a whole slab takes it to the limit, after which every
/// growth is exactly one slab.
void Arena::prime() noexcept {
  const std::lock_guard gate(gate_);
  if (!open_ || primed_.load(std::memory_order_relaxed)) return;
  if (void* whole = ebbtide_je_mallocx(slab_bytes_, flags_of(index_))) {
    ebbtide_je_dallocx(whole, MALLOCX_TCACHE_NONE);
    primed_.store(true, std::memory_order_release);
  }
}

void Arena::push(NumberedSlab slab) {
  assert(slab.slab.bytes() == slab_bytes_);
  const std::lock_guard lock(slabs_mutex_);
  const std::byte* data = slab.slab.data();
  held_.emplace(data, Held{std::move(slab)});
}

std::optional<NumberedSlab> Arena::pop_ready() noexcept {
  const std::lock_guard lock(slabs_mutex_);
  for (auto held = held_.begin(); held != held_.end(); ++held) {
    if (!held->second.ready) continue;
    NumberedSlab slab = std::move(held->second.slab);
    held_.erase(held);
    return slab;
  }
  return std::nullopt;
}

bool Arena::has_ready() const noexcept {
  const std::lock_guard lock(slabs_mutex_);
  for (const auto& [data, held] : held_) {
    if (held.ready) return true;
  }
  return false;
}

size_t Arena::idle_slabs() const noexcept {
  const bool idle = live_.load(std::memory_order_acquire) == 0;
  const std::lock_guard lock(slabs_mutex_);
  size_t count = 0;
  for (const auto& [data, held] : held_) count += idle || held.ready ? 1 : 0;
  return count;
}

void Arena::recycle() noexcept {
  // Whoever is inside allocate() now makes the arena busy: no need to wait for that.
  const std::unique_lock gate(gate_, std::try_to_lock);
  if (!gate.owns_lock() || !open_ || live_.load(std::memory_order_acquire) != 0) return;
  if (!destroy_jemalloc_arena(index_)) return;
  open_ = false;
  primed_.store(false, std::memory_order_relaxed);
  {
    const std::lock_guard lock(slabs_mutex_);
    for (auto& [data, held] : held_) held.ready = true;
  }
  (void)open_jemalloc_arena();  // refused: open_ stays false, and acquire() says that there is no room
}

std::map<const std::byte*, Arena::Held>::const_iterator Arena::find_locked(const std::byte* data) const noexcept {
  return std::prev(held_.upper_bound(data));
}

}  // namespace ebbtide::pinned_pool
