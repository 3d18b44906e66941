#include <ebbtide/transfer/cuda_event_pool.h>

#include <algorithm>

namespace ebbtide {

CudaPooledEvent::~CudaPooledEvent() {
  pool_->give_back(handle_);
}

CudaEventPool::~CudaEventPool() {
  // An event that a stream still waits for ends after that. A failure is that of a lost context, which holds no events.
  (void)context_->call([this](CudaApi& api) {
    for (const CudaEvent event : idle_) (void)api.event_destroy(event);
    return CudaResult::kSuccess;
  });
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
  return EventPtr(std::allocate_shared<CudaPooledEvent>(memory_, shared_from_this(), event));
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

}  // namespace ebbtide
