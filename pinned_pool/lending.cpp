// How memory is lent, and how what comes back is taken.
#include <ebbtide/pinned_pool/page.h>
#include <ebbtide/pinned_pool/pool_state.h>

#include <algorithm>
#include <bit>
#include <utility>

namespace ebbtide::pinned_pool {
namespace {

constexpr size_t kChunkBytes = size_t{32} << 20;
constexpr size_t kLeastParted = size_t{4} << 20;  // what is smaller is not worth a copy more

size_t round_up(size_t bytes, size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

/// How much of `bytes` to take in one piece, so that jemalloc wastes little. It rounds up to sizes of which there are four
/// to a doubling (jemalloc's SIZE CLASSES), 9% on average: a large piece that would waste more than a sixteenth is taken
/// at the size below, and its rest by itself.
size_t part_of(size_t bytes) {
  if (bytes < kLeastParted) return bytes;
  const size_t step = std::bit_floor(bytes) / 4;
  const size_t below = bytes / step * step;
  return below != bytes && below + step - bytes > bytes / 16 ? below : bytes;
}

/// Adds memory as chunks that no seam between registrations crosses: a device's copy may not.
void append_parted(Few<Chunk>& chunks, const Arena::Allocation& from, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    std::byte* data = from.data + done;
    const size_t part =
        std::min(bytes - done, from.memory->pins().to_seam(static_cast<size_t>(data - from.memory->data())));
    chunks.push_back({data, part, from.slab, /*continues=*/done != 0});
    done += part;
  }
}

}  // namespace

size_t PoolState::home_of(NumaNode node) const noexcept {
  if (node == kAnyNode && homes_.size() > 1) node = topology_->node_of_this_thread();
  const auto home = std::find_if(homes_.begin(), homes_.end(), [node](const Home& h) { return h.node == node; });
  return home == homes_.end() ? 0 : static_cast<size_t>(home - homes_.begin());
}

Result<PoolState::Lent> PoolState::acquire(const PinnedPool::Request& request) {
  const auto refuse = [this](Failure failure) {
    refusals_.fetch_add(1, std::memory_order_relaxed);
    return failure;
  };
  if (request.bytes <= Bytes(0))
    return Failure{FailureCode::kInvalid, 0, "a block of " + to_string(request.bytes) + " makes no sense"};
  if (forked())
    return refuse({FailureCode::kUnsupported, 0,
                   "this pool of host memory belongs to the process that this one was forked from"});
  if (request.bytes > capacity_) {
    return refuse(
        {FailureCode::kOverCapacity, 0,
         "a block of " + to_string(request.bytes) + " is more than the pool's capacity of " + to_string(capacity_)});
  }
  std::unique_ptr<ReturnedBlock> way_back = make_way_back();
  const size_t wanted = home_of(request.node);
  std::optional<Failure> first;
  for (size_t i = 0; i < homes_.size(); ++i) {
    const size_t home = (wanted + i) % homes_.size();
    auto chunks = acquire_on(home, request);
    if (chunks) {
      const NumaNode node = homes_[home].node;
      if (request.node != kAnyNode && node != kAnyNode && node != request.node)
        other_node_.fetch_add(1, std::memory_order_relaxed);
      count_live(request.bytes);
      return Lent{way_back.release(), std::move(chunks).value(), node};
    }
    if (!first) first = std::move(chunks).failure();
  }
  return refuse(*std::move(first));
}

Result<Few<Chunk>> PoolState::acquire_on(size_t home, const PinnedPool::Request& request) {
  const auto bytes = static_cast<size_t>(request.bytes.count());
  Few<Chunk> chunks;
  if (request.contiguous && bytes > slab_bytes_) {
    auto chunk = acquire_dedicated(home, bytes, request.may_grow);
    if (!chunk) return std::move(chunk).failure();
    chunks.push_back(chunk.value());
    return chunks;
  }
  const size_t most = std::min(kChunkBytes, slab_bytes_);
  for (size_t done = 0, length = 0; done < bytes; done += length) {
    length = request.contiguous ? bytes : part_of(std::min(most, bytes - done));
    auto piece = request.contiguous ? acquire_piece(home, length, request.may_grow)
                                    : acquire_part(home, length, request.may_grow);
    if (!piece) {
      for (const Chunk& taken : chunks)
        if (!taken.continues) homes_[home].arena->deallocate(taken.data);
      return std::move(piece).failure();
    }
    if (request.contiguous) {
      chunks.push_back({piece.value().data, length, piece.value().slab});
    } else {
      append_parted(chunks, piece.value(), length);
    }
  }
  return chunks;
}

/// `bytes`, or less where that much is not free in one piece: between the blocks of changing sizes lie gaps, and before
/// more is mapped they are used.
Result<Arena::Allocation> PoolState::acquire_part(size_t home, size_t& bytes, bool may_grow) {
  for (size_t part = bytes; part >= kLeastParted; part = std::bit_floor(part - 1)) {
    if (auto piece = acquire_piece(home, part, /*may_grow=*/false)) {
      bytes = part;
      return piece;
    }
  }
  return acquire_piece(home, bytes, may_grow);
}

Result<Arena::Allocation> PoolState::acquire_piece(size_t home, size_t bytes, bool may_grow) {
  Arena& arena = *homes_[home].arena;
  const uint64_t growths = arena.growths();
  const auto attempt = [&]() -> std::optional<Arena::Allocation> {
    const auto found = arena.allocate(round_up(bytes, page_bytes()));
    if (found && has_keeper_ && arena.growths() != growths) {
      const std::lock_guard lock(mutex_);
      spare_wanted_ = home;
      keeper_wakes_.notify_one();
    }
    return found;
  };

  if (const auto piece = attempt()) return *piece;
  if (collect())
    if (const auto piece = attempt()) return *piece;
  if (!may_grow)
    return Failure{FailureCode::kOverCapacity, 0, "no slab that is there has " + to_string(as_bytes(bytes)) + " free"};
  const std::lock_guard growing(grow_mutex_);
  while (true) {
    (void)collect();
    if (const auto piece = attempt()) return *piece;
    // Slabs are pushed under grow_mutex_ only: a ready one that did not help means that jemalloc itself has given up.
    if (arena.has_ready()) return Failure{FailureCode::kUnsupported, 0, "jemalloc does not take slabs any more"};
    auto slab = make_slab(home, slab_bytes_, true);
    if (!slab) {  // meanwhile something may have come back
      (void)collect();
      if (const auto piece = attempt()) return *piece;
      return std::move(slab).failure();
    }
    arena.push(std::move(slab).value());
  }
}

Result<Chunk> PoolState::acquire_dedicated(size_t home, size_t bytes, bool may_grow) {
  (void)collect();
  if (const auto chunk = reuse_dedicated(home, bytes)) return *chunk;
  if (!may_grow)
    return Failure{FailureCode::kOverCapacity, 0, "no idle slab holds " + to_string(as_bytes(bytes)) + " in one piece"};
  const std::lock_guard growing(grow_mutex_);
  (void)collect();
  if (const auto chunk = reuse_dedicated(home, bytes)) return *chunk;
  auto slab = make_slab(home, round_up(bytes, kHugePage), true);
  if (!slab) return std::move(slab).failure();
  const Chunk chunk{slab.value().slab.data(), bytes, slab.value().number};
  const std::lock_guard lock(mutex_);
  dedicated_.emplace(chunk.slab, Dedicated{std::move(slab).value(), home});
  return chunk;
}

/// The smallest idle one that is large enough, at most a quarter too large: no more is wasted than by jemalloc's size
/// classes.
std::optional<Chunk> PoolState::reuse_dedicated(size_t home, size_t bytes) {
  const std::lock_guard lock(mutex_);
  Dedicated* best = nullptr;
  for (auto& [number, slab] : dedicated_) {
    const size_t size = slab.slab.slab.bytes();
    if (slab.lent || slab.home != home || size < bytes || size > round_up(bytes + bytes / 4, kHugePage)) continue;
    if (best == nullptr || size < best->slab.slab.bytes()) best = &slab;
  }
  if (best == nullptr) return std::nullopt;
  best->lent = true;
  return Chunk{best->slab.slab.data(), bytes, best->slab.number};
}

void PoolState::release(ReturnedBlock* way_back, Few<Chunk> chunks, Bytes size, NumaNode node) noexcept {
  if (forked()) return;
  size_t home = 0;
  while (homes_[home].node != node) ++home;
  // Before another thread can have the memory and count it: else the peak of what is lent came out above what there is.
  live_.fetch_sub(size.count(), std::memory_order_relaxed);
  way_back->chunks = std::move(chunks);
  way_back->home = home;
  way_back->at = releases_.fetch_add(1, std::memory_order_relaxed);
  returned_.push(way_back);
}

/// Takes the occasion to give back what was released.
std::unique_ptr<ReturnedBlock> PoolState::make_way_back() {
  {
    const std::unique_lock lock(collect_mutex_, std::try_to_lock);
    if (lock.owns_lock()) {
      (void)take_returned_locked();
      if (ReturnedBlock* spare = spare_returned_) {
        spare_returned_ = spare->next;
        return std::unique_ptr<ReturnedBlock>(spare);
      }
    }
  }
  return std::make_unique<ReturnedBlock>();
}

/// All that was released before this call. False: there was nothing, and nobody else had it.
bool PoolState::collect() noexcept {
  std::unique_lock lock(collect_mutex_, std::try_to_lock);
  const bool others = !lock.owns_lock();
  if (others) lock.lock();  // what is wanted may be what they are giving back
  return take_returned_locked() || others;
}

bool PoolState::take_returned_locked() noexcept {
  return returned_.take_all([this](ReturnedBlock* block) {
    for (const Chunk& chunk : block->chunks) give_back(chunk, *block);
    block->chunks = {};
    block->next = std::exchange(spare_returned_, block);
  });
}

void PoolState::give_back(const Chunk& chunk, const ReturnedBlock& block) noexcept {
  if (chunk.continues) return;
  if (chunk.bytes <= slab_bytes_) {
    homes_[block.home].arena->deallocate(chunk.data);
    return;
  }
  const std::lock_guard lock(mutex_);
  Dedicated& slab = dedicated_.find(chunk.slab)->second;
  slab.lent = false;
  slab.idle_since = block.at;
}

void PoolState::count_live(Bytes bytes) noexcept {
  const int64_t live = live_.fetch_add(bytes.count(), std::memory_order_relaxed) + bytes.count();
  int64_t peak = peak_live_.load(std::memory_order_relaxed);
  while (peak < live && !peak_live_.compare_exchange_weak(peak, live, std::memory_order_relaxed)) {
  }
}

}  // namespace ebbtide::pinned_pool
