// What the parts of the simulator share about one device.
#pragma once

#include <ebbtide/pinned_pool/result.h>
#include <ebbtide/transfer/device.h>

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Device.h>
#include <c10/core/Stream.h>
#include <c10/util/Exception.h>

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/chaos_device.h"

namespace ebbtide::test {

inline constexpr c10::DeviceType kSimType = c10::DeviceType::PrivateUse1;
inline constexpr size_t kSimStreams = 5;  ///< the default one, and a pool that is handed out in turn, as CUDA's

/// Operators that failed on the device, long after their call. Tasks hold it, so it must not hold the device.
/// Threads: any.
class SimFaults {
 public:
  void add(std::string fault);
  std::vector<std::string> list() const;

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> faults_;
};

/// Memory whose users on other streams may not have finished (recordStream).
struct FencedMemory {
  std::shared_ptr<std::byte> memory;
  size_t bytes = 0;
  bool apart = false;
  std::vector<EventPtr> fences;
};

/// Threads: any.
/// Lifetime: its tensors and events keep it alive.
struct SimDevice {
  SimDevice(c10::DeviceIndex device_index, ChaosOptions options);

  const c10::DeviceIndex index;
  const std::shared_ptr<ChaosDevice> chaos;
  const std::array<StreamId, kSimStreams> streams;
  const std::shared_ptr<SimFaults> faults = std::make_shared<SimFaults>();
  std::atomic<unsigned> next_in_pool{0};

  std::mutex mutex;  // never held across a call of `chaos`
  std::vector<FencedMemory> fenced;
  c10::CachingAllocator::Stat allocated;  // bytes
  c10::CachingAllocator::Stat others;     // of these, what is not set apart
  int64_t retries = 0;                    // allocations that found no room at first,
  int64_t refusals = 0;                   // and those of them that found none at last
};

/// The devices of the SimAccelerator that lives. Throws where there is none.
std::shared_ptr<SimDevice> sim_device(c10::DeviceIndex index);
void set_sim_devices(std::vector<std::shared_ptr<SimDevice>> devices);

/// The calling thread's.
c10::DeviceIndex current_sim_device() noexcept;
c10::DeviceIndex exchange_sim_device(c10::DeviceIndex index);
c10::Stream current_sim_stream(c10::DeviceIndex index);
c10::Stream exchange_sim_stream(c10::Stream stream);

/// The ChaosDevice's name of a stream of torch, which is torch's name too, but for the default stream (0 there). So, as
/// with CUDA's external streams, torch can be told of a stream that it did not make.
StreamId chaos_stream(const SimDevice& device, const c10::Stream& stream);

/// The device's failures as torch raises CUDA's.
template <class T>
T checked(Result<T> result) {
  TORCH_CHECK(result.ok(), "sim: ", result.failure().message);
  return std::move(result).value();
}

}  // namespace ebbtide::test
