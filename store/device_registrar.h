// Pinning by a device's driver.
#pragma once

#include <ebbtide/pinned_pool/host_registrar.h>
#include <ebbtide/transfer/device.h>

#include <cstddef>
#include <memory>
#include <utility>

namespace ebbtide {

/// Threads: any.
class DeviceRegistrar final : public HostRegistrar {
 public:
  explicit DeviceRegistrar(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  Status pin(void* data, size_t bytes) noexcept override { return device_->register_host(data, bytes); }
  void unpin(void* data, size_t bytes) noexcept override { device_->unregister_host(data, bytes); }

 private:
  const std::shared_ptr<Device> device_;
};

}  // namespace ebbtide
