#include "tests/support/sim_accelerator/sim_accelerator.h"

#include <ATen/ops/_to_copy.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/TensorImpl.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "tests/support/sim_accelerator/operators.h"
#include "tests/support/sim_accelerator/sim_allocator.h"
#include "tests/support/sim_accelerator/sim_device.h"
#include "tests/support/sim_accelerator/sim_guard.h"

namespace ebbtide::test {
namespace {

/// Torch's registries are of the process.
void register_once() {
  [[maybe_unused]] static const bool registered = [] {
    c10::register_privateuse1_backend("sim");
    c10::SetAllocator(kSimType, &sim_allocator());
    register_sim_guard();
    prefer_cpu_kernels();
    return true;
  }();
}

}  // namespace

SimAccelerator::SimAccelerator(SimOptions options) {
  register_once();
  std::vector<std::shared_ptr<SimDevice>> devices;
  for (c10::DeviceIndex i = 0; i < kDevices; ++i)
    devices.push_back(
        std::make_shared<SimDevice>(i, ChaosOptions{.seed = options.seed * kDevices + static_cast<uint64_t>(i),
                                                    .pace = options.pace,
                                                    .capacity = options.capacity,
                                                    .times_events = true}));
  set_sim_devices(std::move(devices));
}

SimAccelerator::~SimAccelerator() {
  set_sim_devices({});
}

const std::shared_ptr<ChaosDevice>& SimAccelerator::chaos(c10::DeviceIndex index) const {
  return sim_device(index)->chaos;  // it lives as long as this
}

c10::Stream SimAccelerator::side_stream(c10::DeviceIndex index) const {
  return c10::impl::VirtualGuardImpl(kSimType).getNewStream(device(index), /*priority=*/0);
}

Bytes SimAccelerator::allocated(c10::DeviceIndex index) const {
  return Bytes(sim_allocator().getDeviceStats(index).allocated_bytes.front().current);
}

Bytes SimAccelerator::peak(c10::DeviceIndex index) const {
  return Bytes(sim_allocator().getDeviceStats(index).allocated_bytes.front().peak);
}

void SimAccelerator::reset_peak() {
  for (c10::DeviceIndex i = 0; i < kDevices; ++i) sim_allocator().resetPeakStats(i);
}

void SimAccelerator::set_apart(const at::Tensor& tensor) {
  sim_set_apart(tensor.storage().data_ptr());
}

Bytes SimAccelerator::peak_of_others(c10::DeviceIndex index) const {
  const std::shared_ptr<SimDevice> sim = sim_device(index);
  const std::lock_guard lock(sim->mutex);
  return Bytes(sim->others.peak);
}

std::vector<std::string> SimAccelerator::complaints() const {
  std::vector<std::string> complaints;
  for (c10::DeviceIndex i = 0; i < kDevices; ++i) {
    const std::shared_ptr<SimDevice> sim = sim_device(i);
    sim->chaos->run_all();
    const std::string on = "sim:" + std::to_string(i) + ": ";
    for (const std::string& race : sim->chaos->races()) complaints.push_back(on + "race: " + race);
    for (const std::string& misuse : sim->chaos->misuse()) complaints.push_back(on + "misuse: " + misuse);
    for (const std::string& fault : sim->faults->list()) complaints.push_back(on + "operator failed: " + fault);
  }
  return complaints;
}

void move_in_place(const at::Tensor& tensor, c10::Device device) {
  const at::Tensor moved = at::_to_copy(tensor.detach(), tensor.options().device(device));
  c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  impl.set_storage_keep_dtype(moved.storage());
  impl.set_sizes_and_strides(moved.sizes(), moved.strides(), 0);
  impl._change_backend_component_keys(device);
}

}  // namespace ebbtide::test
