// How a pool begins and ends, the thread that makes spares, and what is told.
#include <ebbtide/pinned_pool/page.h>
#include <ebbtide/pinned_pool/pool_state.h>

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

PoolState::~PoolState() {
  while (ReturnedBlock* spare = spare_returned_) {
    spare_returned_ = spare->next;
    delete spare;
  }
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
  stats.most_slab_bytes = as_bytes(static_cast<size_t>(capacity_.count()) / slab_bytes_ * slab_bytes_);
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
