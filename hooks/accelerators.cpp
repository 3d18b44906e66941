#include <ebbtide/hooks/accelerators.h>
#include <ebbtide/hooks/torch_storage.h>
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/transfer/cuda_api.h>
#include <ebbtide/transfer/cuda_device.h>
#include <ebbtide/transfer/device_allocator.h>

#include <ATen/Context.h>
#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace ebbtide {
namespace {

StreamId id_of(const c10::Stream& stream) {
  return StreamId{reinterpret_cast<uintptr_t>(stream.native_handle())};
}

/// Takes memory from torch's own allocator: for the current stream of the calling thread, or for one that was when some
/// thread asked before. That one gives its cached blocks back to the device before it finds no room.
class TorchAllocator final : public DeviceAllocator {
 public:
  explicit TorchAllocator(c10::Device device)
      : device_(device), counted_(dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(device.type()))) {}

  Result<std::shared_ptr<DeviceStorage>> allocate(Bytes bytes, StreamId stream) override {
    try {
      const c10::DeviceGuard guard(device_);
      const std::optional<c10::Stream> known = known_as(stream);
      if (!known) return Failure{FailureCode::kInvalid, 0, "memory was asked for on a stream that has yet to ask"};
      const c10::StreamGuard on_it(*known);
      c10::Allocator* allocator = c10::GetAllocator(device_.type());
      const auto size = static_cast<size_t>(bytes.count());
      c10::Storage storage(c10::Storage::use_byte_size_t(), size, allocator->allocate(size), allocator,
                           /*resizable=*/true);
      return std::shared_ptr<DeviceStorage>(std::make_shared<TorchStorage>(std::move(storage)));
    } catch (const c10::OutOfMemoryError& error) {
      return Failure{FailureCode::kOverCapacity, ENOMEM, error.what_without_backtrace()};
    } catch (const std::exception& error) {
      return Failure{FailureCode::kInvalid, 0, error.what()};
    }
  }

  Result<MemoryUsage> usage() override {
    if (counted_ == nullptr) return DeviceAllocator::usage();
    try {
      const auto stats = counted_->getDeviceStats(device_.index());
      constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
      const auto& allocated = stats.allocated_bytes[kAll];
      return MemoryUsage{.now = Bytes(allocated.current),
                         .spare = std::max(Bytes(0), Bytes(stats.reserved_bytes[kAll].current - allocated.current)),
                         .peak = Bytes(allocated.peak),
                         .shortages = stats.num_alloc_retries + stats.num_ooms};
    } catch (const std::exception& error) {
      return Failure{FailureCode::kUnsupported, 0, error.what()};
    }
  }
  void restart_peak() override {
    try {
      counted_->resetPeakStats(device_.index());
    } catch (const std::exception&) {
      // It has counted a moment ago. The peak is taken for higher than it is.
    }
  }

 private:
  std::optional<c10::Stream> known_as(StreamId stream) {
    const c10::Stream current = c10::impl::getDeviceGuardImpl(device_.type())->getStream(device_);
    const std::lock_guard lock(mutex_);
    if (id_of(current) == stream) return streams_.insert_or_assign(stream, current).first->second;
    const auto found = streams_.find(stream);
    return found != streams_.end() ? std::optional(found->second) : std::nullopt;
  }

  const c10::Device device_;
  c10::DeviceAllocator* const counted_;  // null: of an older kind
  std::mutex mutex_;
  std::map<StreamId, c10::Stream> streams_;  // those that have asked; torch makes none from what a driver calls it
};

/// Torch has loaded the driver and counts devices as it does.
Result<std::shared_ptr<Device>> open_cuda(c10::DeviceIndex index) {
  Result<std::shared_ptr<CudaApi>> driver = CudaApi::of_process();
  if (!driver.ok()) return driver.failure();
  Result<std::shared_ptr<CudaDevice>> device = CudaDevice::open(std::move(driver).value(), index);
  if (!device.ok()) return device.failure();
  return std::shared_ptr<Device>(std::move(device).value());
}

}  // namespace

Accelerators::Accelerators() {
  serve(c10::kCUDA, open_cuda);
}

void Accelerators::serve(c10::DeviceType type, OpenDevice open) {
  const std::lock_guard lock(mutex_);
  openers_.insert_or_assign(type, std::move(open));
}

bool Accelerators::serves(c10::DeviceType type) const {
  const std::lock_guard lock(mutex_);
  return openers_.contains(type);
}

bool Accelerators::serve_some() const {
  const std::lock_guard lock(mutex_);
  return !served_.empty();
}

Accelerators::Served Accelerators::of(StoreCore& core, c10::Device device) {
  const std::lock_guard lock(mutex_);
  const auto known = served_.find(device);
  if (known != served_.end()) return known->second;
  Served served;
  std::string why;
  try {
    auto opened = openers_.at(device.type())(device.index());
    if (opened.ok()) {
      served.number = core.add_device(opened.value(), std::make_shared<TorchAllocator>(device), {});
      served.device = std::move(opened).value();
    } else {
      why = opened.failure().message;
    }
  } catch (const Error& error) {
    why = error.what();
  }
  if (!served.device) core.warn("tensors on " + device.str() + " stay where they are: " + why);
  served_.emplace(device, served);
  return served;
}

std::vector<DoctorOptions::Accelerator> accelerators_of_torch() {
  std::vector<DoctorOptions::Accelerator> found;
  try {
    if (!c10::impl::hasDeviceGuardImpl(c10::kCUDA)) return found;
    const c10::DeviceIndex count = c10::impl::getDeviceGuardImpl(c10::kCUDA)->deviceCount();
    if (count == 0) return found;
    at::globalContext().lazyInitDevice(c10::kCUDA);
    for (c10::DeviceIndex index = 0; index < count; ++index) {
      const c10::Device device(c10::kCUDA, index);
      DoctorOptions::Accelerator& accelerator = found.emplace_back();
      accelerator.name = device.str();
      auto opened = open_cuda(index);
      if (!opened.ok()) {
        accelerator.refused = std::move(opened).failure().message;
        continue;
      }
      accelerator.device = std::move(opened).value();
      accelerator.name += " (" + accelerator.device->name() + ")";
      accelerator.allocator = std::make_shared<TorchAllocator>(device);
      accelerator.stream = current_stream(device);
    }
  } catch (const std::exception& error) {  // torch's own, of a driver that does not work
    found.push_back({.name = "CUDA", .refused = error.what()});
  }
  return found;
}

StreamId current_stream(c10::Device device) {
  return id_of(c10::impl::getDeviceGuardImpl(device.type())->getStream(device));
}

void note_current_stream(const c10::Storage& storage) {
  const c10::impl::VirtualGuardImpl guard(storage.device_type());
  guard.recordDataPtrOnStream(storage.unsafeGetStorageImpl()->data_ptr(), guard.getStream(storage.device()));
}

}  // namespace ebbtide
