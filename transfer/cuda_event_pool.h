// Events of one CUDA context, made once and used again.
#pragma once

#include <ebbtide/transfer/block_cache.h>
#include <ebbtide/transfer/cuda_context.h>
#include <ebbtide/transfer/device.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace ebbtide {

class CudaEventPool;

/// An event that has been recorded once, and goes back to its pool when the last reference dies. Nobody can then ask
/// about its old point; streams that were made to wait for it still do, since the driver keeps what an event stood for
/// at the time of the wait.
class CudaPooledEvent final : public Event {
 public:
  CudaPooledEvent(std::shared_ptr<CudaEventPool> pool, CudaEvent handle) noexcept
      : pool_(std::move(pool)), handle_(handle) {}
  ~CudaPooledEvent() override;

  CudaEvent handle() const noexcept { return handle_; }
  const CudaEventPool* pool() const noexcept { return pool_.get(); }

 private:
  const std::shared_ptr<CudaEventPool> pool_;
  const CudaEvent handle_;
};

/// Grows to the most events alive at once, and then neither makes events nor allocates.
///
/// Threads:  any. Lock: a leaf, held across no call of the driver.
/// Lifetime: lives until its last event has died; the driver's events end with it.
class CudaEventPool : public std::enable_shared_from_this<CudaEventPool> {
 public:
  CudaEventPool(std::shared_ptr<CudaContext> context, unsigned flags) : context_(std::move(context)), flags_(flags) {}
  ~CudaEventPool();

  /// An event at the end of what is enqueued on `stream`. Errors: as CudaContext.
  Result<EventPtr> record(CudaStream stream);

 private:
  friend class CudaPooledEvent;
  CudaEvent take_idle() noexcept;
  CudaResult make(CudaApi& api, CudaEvent* event);
  void give_back(CudaEvent event) noexcept;

  const std::shared_ptr<CudaContext> context_;
  const unsigned flags_;
  const CachedAllocator<CudaPooledEvent> memory_;
  std::mutex mutex_;
  // All below: guarded by mutex_.
  std::vector<CudaEvent> idle_;  // with room for all that were made
  size_t made_ = 0;
};

}  // namespace ebbtide
