// How slabs are made, and how those that are idle make room for others.
#include <ebbtide/pinned_pool/pool_state.h>

#include <algorithm>
#include <utility>

namespace ebbtide::pinned_pool {

Result<NumberedSlab> PoolState::make_slab(size_t home, size_t bytes, bool may_evict) {
  Bytes missing;
  if (auto failure = shortage(home, bytes, missing)) {
    (void)collect();
    if (!may_evict || idle_bytes() < missing) return *std::move(failure);
    evict(missing);
    // Once more: threads that need no growth may have taken what was idle, other processes what was free.
    if (auto still = shortage(home, bytes, missing)) return *std::move(still);
  }
  uint32_t number = 0;
  {
    const std::lock_guard lock(mutex_);
    mapped_ += as_bytes(bytes);
    peak_mapped_ = std::max(peak_mapped_, mapped_);
    number = static_cast<uint32_t>(std::find(numbers_.begin(), numbers_.end(), false) - numbers_.begin());
    if (number == numbers_.size()) numbers_.push_back(false);
    numbers_[number] = true;
  }
  const auto start = std::chrono::steady_clock::now();
  auto slab = Slab::make({.bytes = bytes,
                          .topology = topology_.get(),
                          .node = homes_[home].node,
                          .registrar = options_.registrar.get(),
                          .watcher = options_.watcher.get(),
                          .survives_fork = options_.survives_fork,
                          .cancelled = may_evict ? nullptr : &cancelled_});
  const std::lock_guard lock(mutex_);
  growing_ += std::chrono::steady_clock::now() - start;
  if (!slab) {
    mapped_ -= as_bytes(bytes);
    numbers_[number] = false;
    return std::move(slab).failure();
  }
  const Slab& made = slab.value();
  ++slabs_;
  ++growths_;
  small_page_slabs_ += made.huge_pages() ? 0 : 1;
  pinned_ += as_bytes(made.pins().bytes());
  pageable_slabs_ += made.pageable_because().empty() ? 0 : 1;
  if (pageable_because_.empty()) pageable_because_ = made.pageable_because();
  if (unbound_because_.empty()) unbound_because_ = made.unbound_because();
  if (inherited_because_.empty()) inherited_because_ = made.inherited_because();
  return NumberedSlab{std::move(slab).value(), number};
}

/// Why `bytes` more cannot be mapped now, and how much is `missing`.
std::optional<Failure> PoolState::shortage(size_t home, size_t bytes, Bytes& missing) const {
  const std::string what = "refusing to grow by " + to_string(as_bytes(bytes)) + ": ";
  Bytes mapped;
  {
    const std::lock_guard lock(mutex_);
    mapped = mapped_;
  }
  std::optional<Failure> failure;
  missing = Bytes(0);
  if (mapped + as_bytes(bytes) > capacity_) {
    missing = mapped + as_bytes(bytes) - capacity_;
    failure = Failure{FailureCode::kOverCapacity, 0,
                      what + to_string(mapped) + " of the pool's capacity of " + to_string(capacity_) +
                          " are mapped, " + to_string(Bytes(live_.load(std::memory_order_relaxed))) + " of it in use"};
  }
  Room room = system_.room();
  if (homes_.size() > 1 || (topology_ && topology_->has_other_memory())) {
    if (Room near = system_.room_on(homes_[home].node); near.left < room.left) room = std::move(near);
  }
  if (room.left < as_bytes(bytes) && as_bytes(bytes) - room.left > missing) {
    missing = as_bytes(bytes) - room.left;
    failure = Failure{FailureCode::kOverCapacity, 0,
                      what + "only " + to_string(room.left) + " left under " + room.where + " (with " +
                          to_string(room.reserve) + " in reserve)"};
  }
  return failure;
}

/// What evict() could give back at most.
Bytes PoolState::idle_bytes() const {
  Bytes idle;
  for (const Home& home : homes_) idle += as_bytes(home.arena->idle_slabs() * slab_bytes_);
  const std::lock_guard lock(mutex_);
  for (const auto& [number, slab] : dedicated_) {
    if (!slab.lent) idle += as_bytes(slab.slab.slab.bytes());
  }
  return idle;
}

/// Unmaps idle slabs, at least `bytes` if there are as many: dedicated ones first, the longest idle before others, then
/// ready ones, then those of idle arenas.
Bytes PoolState::evict(Bytes bytes) {
  Bytes given;
  const auto drop = [&](NumberedSlab slab) {
    given += as_bytes(slab.slab.bytes());
    unmap(std::move(slab));
  };
  const auto oldest_idle = [this]() -> std::optional<NumberedSlab> {
    const std::lock_guard lock(mutex_);
    auto oldest = dedicated_.end();
    for (auto slab = dedicated_.begin(); slab != dedicated_.end(); ++slab) {
      if (!slab->second.lent && (oldest == dedicated_.end() || slab->second.idle_since < oldest->second.idle_since))
        oldest = slab;
    }
    if (oldest == dedicated_.end()) return std::nullopt;
    return std::move(dedicated_.extract(oldest).mapped().slab);
  };
  while (given < bytes) {
    auto slab = oldest_idle();
    if (!slab) break;
    drop(*std::move(slab));
  }
  for (const bool recycle : {false, true}) {
    for (const Home& home : homes_) {
      if (given >= bytes) return given;
      if (recycle) home.arena->recycle();
      while (given < bytes) {
        auto slab = home.arena->pop_ready();
        if (!slab) break;
        drop(*std::move(slab));
      }
    }
  }
  return given;
}

void PoolState::unmap(NumberedSlab gone) noexcept {
  const bool small_pages = !gone.slab.huge_pages();
  const bool pageable = !gone.slab.pageable_because().empty();
  const Bytes pinned = as_bytes(gone.slab.pins().bytes());
  const Bytes bytes = as_bytes(gone.slab.bytes());
  const uint32_t number = gone.number;
  { const NumberedSlab dies_here = std::move(gone); }  // only what is unmapped may be counted as free
  const std::lock_guard lock(mutex_);
  mapped_ -= bytes;
  numbers_[number] = false;
  --slabs_;
  ++returns_;
  pinned_ -= pinned;
  small_page_slabs_ -= small_pages ? 1 : 0;
  pageable_slabs_ -= pageable ? 1 : 0;
}

Bytes PoolState::trim() {
  if (forked()) return Bytes(0);
  const std::lock_guard growing(grow_mutex_);
  (void)collect();
  return evict(capacity_);
}

}  // namespace ebbtide::pinned_pool
