#include "tests/support/sim_accelerator/sim_device.h"

#include "tests/support/sim_accelerator/sim_accelerator.h"

namespace ebbtide::test {
namespace {

/// Leaked: tensors may die after static destructors.
struct Registry {
  std::mutex mutex;
  std::vector<std::shared_ptr<SimDevice>> devices;

  static Registry& instance() {
    static auto* registry = new Registry;
    return *registry;
  }
};

thread_local c10::DeviceIndex current_device = 0;
thread_local std::array<c10::StreamId, SimAccelerator::kDevices> current_stream{};

std::array<StreamId, kSimStreams> make_streams(ChaosDevice& chaos) {
  std::array<StreamId, kSimStreams> streams{};
  for (size_t i = 0; i < streams.size(); ++i)
    streams[i] = chaos.make_stream(i == 0 ? "default" : "stream " + std::to_string(i));
  return streams;
}

}  // namespace

void SimFaults::add(std::string fault) {
  const std::lock_guard lock(mutex_);
  faults_.push_back(std::move(fault));
}

std::vector<std::string> SimFaults::list() const {
  const std::lock_guard lock(mutex_);
  return faults_;
}

SimDevice::SimDevice(c10::DeviceIndex device_index, ChaosOptions options)
    : index(device_index), chaos(std::make_shared<ChaosDevice>(options)), streams(make_streams(*chaos)) {}

std::shared_ptr<SimDevice> sim_device(c10::DeviceIndex index) {
  Registry& registry = Registry::instance();
  const std::lock_guard lock(registry.mutex);
  TORCH_CHECK(!registry.devices.empty(), "sim: no SimAccelerator lives");
  TORCH_CHECK(index >= 0 && static_cast<size_t>(index) < registry.devices.size(), "sim: invalid device ordinal ",
              static_cast<int>(index));
  return registry.devices[static_cast<size_t>(index)];
}

void set_sim_devices(std::vector<std::shared_ptr<SimDevice>> devices) {
  Registry& registry = Registry::instance();
  const std::lock_guard lock(registry.mutex);
  TORCH_CHECK(devices.empty() || registry.devices.empty(), "sim: a SimAccelerator lives already");
  registry.devices.swap(devices);
}

c10::DeviceIndex current_sim_device() noexcept {
  return current_device;
}

c10::DeviceIndex exchange_sim_device(c10::DeviceIndex index) {
  return index < 0 ? current_device : std::exchange(current_device, index);
}

c10::Stream current_sim_stream(c10::DeviceIndex index) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(kSimType, index), current_stream.at(static_cast<size_t>(index)));
}

c10::Stream exchange_sim_stream(c10::Stream stream) {
  const c10::Stream before = current_sim_stream(stream.device_index());
  current_stream.at(static_cast<size_t>(stream.device_index())) = stream.id();
  return before;
}

StreamId chaos_stream(const SimDevice& device, const c10::Stream& stream) {
  TORCH_CHECK(stream.device_type() == kSimType && stream.device_index() == device.index,
              "sim: a stream of another device: ", stream);
  return stream.id() == 0 ? device.streams.front() : StreamId{static_cast<uint64_t>(stream.id())};
}

}  // namespace ebbtide::test
