// One accelerator's two lanes, and the thread that looks after them while callers compute.
#pragma once

#include <ebbtide/transfer/copy_lane.h>
#include <ebbtide/transfer/device.h>
#include <ebbtide/transfer/device_allocator.h>
#include <ebbtide/transfer/device_clock.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

namespace ebbtide {

class StoreCore;

/// Lifetime: shared by the tier and by the link thread, which sees the copies in flight to their end after the core has
/// died. Threads: any.
class DeviceLink {
 public:
  /// `host_clock`: null for the system's; else it outlives the link.
  DeviceLink(std::shared_ptr<Device> on, std::shared_ptr<DeviceAllocator> from, const LinkBandwidth& bandwidth = {},
             const Clock* host_clock = nullptr);

  const std::shared_ptr<Device> device;
  const std::shared_ptr<DeviceAllocator> allocator;

 private:
  const SteadyClock clock_;
  const std::shared_ptr<LinkLoad> load_ = std::make_shared<LinkLoad>();

 public:
  CopyLane out;
  CopyLane in;
  /// Read by pump(), and by nobody once the link is gone.
  const std::shared_ptr<DeviceClock> clock;

  /// REQUIRES: the core's lock is not held (as for all calls into a lane that may end a job).
  void pump();
  bool idle() const;
};

/// Polls the lanes while something is in flight, and lets host copies sink as it passes. Never joined: it holds the
/// core weakly, and ends by itself once told to, with what is in flight or after a second.
class LinkThread : public std::enable_shared_from_this<LinkThread> {
 public:
  /// Null where the system refuses a thread: packs and unpacks alone then move things on.
  static std::shared_ptr<LinkThread> start(std::weak_ptr<StoreCore> core);
  void add(std::shared_ptr<DeviceLink> link);
  /// Something was submitted.
  void kick() noexcept;
  /// The core is gone.
  void end() noexcept;

 private:
  void run(const std::weak_ptr<StoreCore>& core);

  std::mutex mutex_;
  std::condition_variable kicked_;
  // Guarded by mutex_.
  std::vector<std::shared_ptr<DeviceLink>> links_;
  bool busy_ = false;
  bool ended_ = false;
};

}  // namespace ebbtide
