#include <ebbtide/pinned_pool/pool_state.h>

#include <ebbtide/pinned_pool/page.h>

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <system_error>
#include <thread>
#include <utility>

namespace ebbtide::pinned_pool {
namespace {

constexpr size_t kChunkBytes = size_t{32} << 20;
constexpr size_t kLeastParted = size_t{4} << 20;  // what is smaller is not worth a copy more

size_t round_up(size_t bytes, size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}
Bytes as_bytes(size_t bytes) {
  return Bytes(static_cast<int64_t>(bytes));
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

size_t default_slab_bytes(Bytes capacity) {
  return static_cast<size_t>(std::min(std::clamp(capacity / 16, MiB(64), GiB(1)), capacity / 4).count());
}

}  // namespace

/// What the pool and its blocks really hold, under the name of the state inside.
class PoolState::Lifeline {
 public:
  explicit Lifeline(std::shared_ptr<PoolState> held) noexcept : state(std::move(held)) {}
  Lifeline(const Lifeline&) = delete;
  Lifeline& operator=(const Lifeline&) = delete;
  ~Lifeline() {
    if (state->forked()) {
      (void)new std::shared_ptr<PoolState>(
          std::move(state));  // leaked: to unmap or unpin here would hit what is not ours
    } else if (state->has_keeper_) {
      state->stop_keeper();
    } else {
      state->unmap_everything();
    }
  }

  std::shared_ptr<PoolState> state;
};

Result<std::shared_ptr<PoolState>> PoolState::create(PoolOptions options) {
  Bytes capacity;
  if (options.capacity) {
    capacity = *options.capacity;
    if (capacity < as_bytes(kHugePage)) {
      return Failure{FailureCode::kInvalid, 0,
                     "a pool's capacity of " + to_string(capacity) + " is less than one huge page (2 MiB)"};
    }
  } else {
    const Room room = Capacity(options.system_root).room();
    capacity = room.left / 2;
    if (capacity < as_bytes(kHugePage)) {
      return Failure{FailureCode::kOverCapacity, 0,
                     "no room for a pool of host memory: only " + to_string(room.left) + " left under " + room.where};
    }
  }
  if (options.slab_bytes && (*options.slab_bytes < as_bytes(kHugePage) || *options.slab_bytes > capacity)) {
    return Failure{FailureCode::kInvalid, 0,
                   "slabs of " + to_string(*options.slab_bytes) + ": 2 MiB to the pool's capacity of " +
                       to_string(capacity) + " is what makes sense"};
  }
  const size_t wish =
      options.slab_bytes ? static_cast<size_t>(options.slab_bytes->count()) : default_slab_bytes(capacity);
  const size_t slab_bytes = std::max(std::bit_floor(wish), kHugePage);

  const bool keep_spare = options.keep_spare;
  std::shared_ptr<PoolState> state(new PoolState(std::move(options), capacity, slab_bytes));
  if (Status status = state->open_homes(); !status) return std::move(status).failure();
  if (keep_spare) state->start_keeper(state);
  auto lifeline = std::make_shared<Lifeline>(state);
  return std::shared_ptr<PoolState>(std::move(lifeline), state.get());
}

PoolState::PoolState(PoolOptions options, Bytes capacity, size_t slab_bytes)
    : pid_(::getpid()),
      options_(std::move(options)),
      system_(options_.system_root),
      capacity_(capacity),
      slab_bytes_(slab_bytes) {}

Status PoolState::open_homes() {
  std::vector<NumaNode> nodes;
  if (options_.numa_bind) {
    topology_ = options_.topology;
    if (!topology_) {
      if (auto loaded = Topology::load()) {
        topology_ = std::make_shared<const Topology>(std::move(loaded).value());
      } else {
        unbound_because_ = std::move(loaded).failure().message;
      }
    }
    if (topology_) nodes = topology_->nodes();
  }
  if (nodes.empty()) nodes.push_back(kAnyNode);
  for (NumaNode node : nodes) {
    auto arena = Arena::create(slab_bytes_);
    if (!arena) return std::move(arena).failure();
    homes_.push_back({node, std::move(arena).value()});
  }
  return success();
}

bool PoolState::forked() const noexcept {
  return ::getpid() != pid_;
}

// ---- lending

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
    if (!slab) return std::move(slab).failure();
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

PoolState::~PoolState() {
  while (ReturnedBlock* spare = spare_returned_) {
    spare_returned_ = spare->next;
    delete spare;
  }
}

void PoolState::count_live(Bytes bytes) noexcept {
  const int64_t live = live_.fetch_add(bytes.count(), std::memory_order_relaxed) + bytes.count();
  int64_t peak = peak_live_.load(std::memory_order_relaxed);
  while (peak < live && !peak_live_.compare_exchange_weak(peak, live, std::memory_order_relaxed)) {
  }
}

// ---- slabs

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
  if (homes_.size() > 1) {
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

void PoolState::unmap_everything() noexcept {
  (void)collect();
  homes_.clear();
  dedicated_.clear();
}

// ---- the keeper

void PoolState::start_keeper(const std::shared_ptr<PoolState>& self) {
  // Signals are the program's: none may be delivered on this thread.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    std::thread([self] {
      pthread_setname_np(pthread_self(), "ebbtide-pool");
      self->keep_spares();
      self->unmap_everything();
    }).detach();
    has_keeper_ = true;
  } catch (const std::system_error&) {
    // No thread to be had: the pool works without a spare.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void PoolState::keep_spares() {
  while (true) {
    size_t home = 0;
    {
      std::unique_lock lock(mutex_);
      keeper_wakes_.wait(lock, [this] { return stopping_ || spare_wanted_; });
      if (stopping_) return;
      home = *std::exchange(spare_wanted_, std::nullopt);
    }
    const std::lock_guard growing(grow_mutex_);
    if (homes_[home].arena->has_ready()) continue;
    // Refused: no spare now. The next growth asks again.
    if (auto slab = make_slab(home, slab_bytes_, false)) homes_[home].arena->push(std::move(slab).value());
  }
}

void PoolState::stop_keeper() noexcept {
  cancelled_.store(true, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  keeper_wakes_.notify_one();
}

PoolStats PoolState::stats() const {
  PoolStats stats;
  stats.capacity = capacity_;
  stats.live_bytes = Bytes(live_.load(std::memory_order_relaxed));
  stats.peak_live_bytes = Bytes(peak_live_.load(std::memory_order_relaxed));
  stats.refusals = refusals_.load(std::memory_order_relaxed);
  stats.other_node = other_node_.load(std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  stats.slab_bytes = mapped_;
  stats.peak_slab_bytes = peak_mapped_;
  stats.slabs = slabs_;
  stats.growths = growths_;
  stats.returns = returns_;
  stats.growing_s = std::chrono::duration<double>(growing_).count();
  stats.pinned_bytes = pinned_;
  stats.huge_pages = slabs_ > 0 && small_page_slabs_ == 0;
  stats.pinned = slabs_ > 0 && pageable_slabs_ == 0;
  if (!stats.pinned) stats.pageable_because = pageable_because_;
  stats.unbound_because = unbound_because_;
  stats.inherited_because = inherited_because_;
  return stats;
}

}  // namespace ebbtide::pinned_pool
