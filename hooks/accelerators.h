// The accelerators whose tensors one store serves.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/pinned_pool/result.h>
#include <ebbtide/store/doctor.h>
#include <ebbtide/transfer/device.h>

#include <c10/core/Device.h>
#include <c10/core/Storage.h>
#include <c10/core/Stream.h>

#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace ebbtide {

class StoreCore;

/// Makes the Device for one of torch's. Called on a thread that packs, without a lock of the store. It must not throw.
using OpenDevice = std::function<Result<std::shared_ptr<Device>>(c10::DeviceIndex)>;

/// Lifetime: the store's core keeps it.
/// Threads: all methods from any.
class EBBTIDE_API Accelerators {
 public:
  struct Served {
    int number = 0;                  ///< of the store's tier, see StoreCore::add_device
    std::shared_ptr<Device> device;  ///< null where it cannot be served
  };

  /// Serves CUDA from the start.
  Accelerators();

  /// Tensors on devices of this type are served from now on. `open` is called once a device.
  void serve(c10::DeviceType type, OpenDevice open);
  bool serves(c10::DeviceType type) const;

  /// Whether one was asked for.
  bool serve_some() const;
  /// Opens the store's tier for this device when first asked for it. One that cannot be opened is warned of, once.
  Served of(StoreCore& core, c10::Device device);

 private:
  mutable std::mutex mutex_;
  std::unordered_map<c10::DeviceType, OpenDevice> openers_;
  std::unordered_map<c10::Device, Served> served_;
};

/// Every CUDA device that torch sees, with memory of torch's and this thread's stream to measure its link with. Starts CUDA
/// where the process has not yet.
EBBTIDE_API std::vector<DoctorOptions::Accelerator> accelerators_of_torch();

/// The stream of this thread's work on `device`, as the store names it.
StreamId current_stream(c10::Device device);

/// Tells torch that this thread's current stream uses `storage`: the memory goes to nobody else before that has run.
/// For what is packed too: nothing says on which stream its memory was allocated, where torch gives it to the next, and
/// on that stream nothing costs nothing. Of the copy streams torch must not be told: it would turn to them when it frees
/// the memory, if need be after the store has died. The stream of the pack waits for their copies before the store lets
/// go.
void note_current_stream(const c10::Storage& storage);

}  // namespace ebbtide
