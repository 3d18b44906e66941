#include <ebbtide/transfer/cuda_event_pool.h>

#include <algorithm>
#include <new>

namespace ebbtide {

/// For std::allocate_shared: the copy in the control block keeps the pool alive until after the event's destructor.
template <class T>
struct CudaEventPool::Allocator {
  using value_type = T;

  explicit Allocator(std::shared_ptr<CudaEventPool> from) noexcept : pool(std::move(from)) {}
  template <class U>
  Allocator(const Allocator<U>& other) noexcept : pool(other.pool) {}  // NOLINT(google-explicit-constructor)

  T* allocate(size_t count) { return static_cast<T*>(pool->take_block(count * sizeof(T))); }
  void deallocate(T* memory, size_t) noexcept { pool->give_block(memory); }

  template <class U>
  bool operator==(const Allocator<U>& other) const noexcept {
    return pool == other.pool;
  }

  std::shared_ptr<CudaEventPool> pool;
};

CudaPooledEvent::~CudaPooledEvent() {
  pool_.give_back(handle_);
}

CudaEventPool::~CudaEventPool() {
  // An event that a stream still waits for ends after that. A failure is that of a lost context, which holds no events.
  (void)context_->call([this](CudaApi& api) {
    for (const CudaEvent event : idle_) (void)api.event_destroy(event);
    return CudaResult::kSuccess;
  });
  while (blocks_ != nullptr) ::operator delete(std::exchange(blocks_, blocks_->next));
}

Result<EventPtr> CudaEventPool::record(CudaStream stream) {
  CudaEvent event = take_idle();
  const Status recorded = context_->run("Recording an event", [&](CudaApi& api) {
    const CudaResult made = event != nullptr ? CudaResult::kSuccess : make(api, &event);
    return made == CudaResult::kSuccess ? api.event_record(event, stream) : made;
  });
  if (!recorded.ok()) {
    if (event != nullptr) give_back(event);
    return recorded.failure();
  }
  return EventPtr(std::allocate_shared<CudaPooledEvent>(Allocator<CudaPooledEvent>(shared_from_this()), *this, event));
}

CudaEvent CudaEventPool::take_idle() noexcept {
  const std::lock_guard lock(mutex_);
  if (idle_.empty()) return nullptr;
  const CudaEvent event = idle_.back();
  idle_.pop_back();
  return event;
}

CudaResult CudaEventPool::make(CudaApi& api, CudaEvent* event) {
  const CudaResult result = api.event_create(event, flags_);
  if (result != CudaResult::kSuccess) {
    *event = nullptr;
    return result;
  }
  const std::lock_guard lock(mutex_);
  ++made_;
  if (idle_.capacity() < made_) idle_.reserve(std::max<size_t>(64, 2 * made_));
  return result;
}

void CudaEventPool::give_back(CudaEvent event) noexcept {
  const std::lock_guard lock(mutex_);
  idle_.push_back(event);
}

void* CudaEventPool::take_block(size_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    if (blocks_ != nullptr) return std::exchange(blocks_, blocks_->next);
  }
  return ::operator new(std::max(bytes, sizeof(Block)));
}

void CudaEventPool::give_block(void* memory) noexcept {
  const std::lock_guard lock(mutex_);
  blocks_ = new (memory) Block{blocks_};
}

}  // namespace ebbtide
