#include "tests/support/sim_accelerator/sim_guard.h"

#include <ATen/Context.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <algorithm>

#include "tests/support/sim_accelerator/sim_accelerator.h"
#include "tests/support/sim_accelerator/sim_allocator.h"
#include "tests/support/sim_accelerator/sim_device.h"

namespace ebbtide::test {
namespace {

/// What torch calls an event: recorded again and again.
struct SimEvent {
  std::shared_ptr<SimDevice> device;
  EventPtr point;
};

EventPtr point_on(const SimDevice& device, StreamId stream) {
  return checked(device.chaos->record(stream));
}

class SimGuard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kSimType; }
  c10::DeviceIndex deviceCount() const noexcept override { return SimAccelerator::kDevices; }

  c10::Device exchangeDevice(c10::Device device) const override {
    return {kSimType, exchange_sim_device(device.index())};
  }
  c10::Device getDevice() const override { return {kSimType, current_sim_device()}; }
  void setDevice(c10::Device device) const override { exchange_sim_device(device.index()); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { exchange_sim_device(device.index()); }

  c10::Stream getStream(c10::Device device) const override { return current_sim_stream(index_of(device)); }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, c10::Device(kSimType, index_of(device)));
  }
  c10::Stream getNewStream(c10::Device device, int) const override {
    const std::shared_ptr<SimDevice> sim = sim_device(index_of(device));
    const StreamId next = sim->streams.at(1 + sim->next_in_pool++ % (kSimStreams - 1));
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(kSimType, sim->index), static_cast<c10::StreamId>(next));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device, 0); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return exchange_sim_stream(stream); }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    const StreamId id = chaos_stream(*sim_device(stream.device_index()), stream);
    return reinterpret_cast<void*>(static_cast<uintptr_t>(id));  // NOLINT(performance-no-int-to-ptr): it is a name
  }
  bool queryStream(const c10::Stream& stream) const override {
    const std::shared_ptr<SimDevice> device = sim_device(stream.device_index());
    return checked(device->chaos->passed(point_on(*device, chaos_stream(*device, stream))));
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    const std::shared_ptr<SimDevice> device = sim_device(stream.device_index());
    checked(device->chaos->synchronize(point_on(*device, chaos_stream(*device, stream))));
  }
  void synchronizeDevice(const c10::DeviceIndex index) const override {
    const std::shared_ptr<SimDevice> device = sim_device(index);
    for (const StreamId stream : device->streams) checked(device->chaos->synchronize(point_on(*device, stream)));
    for (const Direction direction : {Direction::kOut, Direction::kIn})
      checked(device->chaos->synchronize(point_on(*device, device->chaos->copy_stream(direction))));
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex, const c10::EventFlag) const override {
    const std::shared_ptr<SimDevice> device = sim_device(stream.device_index());
    EventPtr point = point_on(*device, chaos_stream(*device, stream));
    if (*event == nullptr) *event = new SimEvent;
    *static_cast<SimEvent*>(*event) = {device, std::move(point)};
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event == nullptr) return;
    const auto& [device, point] = *static_cast<SimEvent*>(event);
    if (stream.device_index() == device->index) {
      checked(device->chaos->wait(chaos_stream(*device, stream), point));
    } else {
      checked(device->chaos->synchronize(point));  // the devices know nothing of each other: the host waits
    }
  }
  bool queryEvent(void* event) const override {
    if (event == nullptr) return true;
    const auto& [device, point] = *static_cast<SimEvent*>(event);
    return checked(device->chaos->passed(point));
  }
  void synchronizeEvent(void* event) const override {
    if (event == nullptr) return;
    const auto& [device, point] = *static_cast<SimEvent*>(event);
    checked(device->chaos->synchronize(point));
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<SimEvent*>(event);
  }

  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    sim_allocator().recordStream(data, stream);
  }

 private:
  static c10::DeviceIndex index_of(c10::Device device) {
    return device.has_index() ? device.index() : current_sim_device();
  }
};

at::Generator& own_generator() {
  static at::Generator generator;
  return generator;
}

class SimHooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return SimAccelerator::kDevices; }
  c10::DeviceIndex getCurrentDevice() const override { return current_sim_device(); }
  void setCurrentDevice(c10::DeviceIndex index) const override { exchange_sim_device(index); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override { return exchange_sim_device(index); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override { return exchange_sim_device(index); }
  bool isPinnedPtr(const void*) const override { return false; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return own_generator().defined() ? own_generator() : at::globalContext().defaultGenerator(at::kCPU);
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    const c10::DeviceGuard guard(storage.device());
    c10::DataPtr resized = sim_allocator().allocate(bytes);
    if (const size_t kept = std::min(bytes, storage.nbytes()); kept > 0)
      sim_allocator().copy_data(resized.get(), storage.data(), kept);
    storage.unsafeGetStorageImpl()->set_data_ptr(std::move(resized));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};

}  // namespace

void register_sim_guard() {
  c10::impl::registerDeviceGuard(kSimType, new SimGuard);  // torch keeps the pointers
  at::RegisterPrivateUse1HooksInterface(new SimHooks);
}

SimGenerator::SimGenerator(at::Generator own) {
  own_generator() = std::move(own);
}

SimGenerator::~SimGenerator() {
  own_generator() = at::Generator();
}

}  // namespace ebbtide::test
