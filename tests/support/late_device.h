// A device whose events are seen to have passed late.
#pragma once

#include <ebbtide/transfer/device.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

namespace ebbtide::test {

/// passed() mostly says no without having looked, as on a device that is busy. What the program sees puts things in
/// order, and so hides missing waits from the race detector: with this it sees little.
/// Threads: as the device beneath.
class LateDevice : public Device {
 public:
  /// `looks_in_100`: how often passed() asks.
  LateDevice(std::shared_ptr<Device> device, uint64_t seed, unsigned looks_in_100)
      : device_(std::move(device)), looks_in_100_(looks_in_100), state_(seed) {}

  /// From now on passed() always looks.
  void be_in_time() noexcept { looks_in_100_ = 100; }

  bool is_host() const noexcept override { return device_->is_host(); }
  std::string name() const override { return device_->name(); }
  std::string pci_address() const override { return device_->pci_address(); }
  Result<DeviceMemory> memory() override { return device_->memory(); }
  StreamId copy_stream(Direction direction) noexcept override { return device_->copy_stream(direction); }
  Result<EventPtr> record(StreamId stream) override { return device_->record(stream); }
  Status wait(StreamId stream, const EventPtr& event) override { return device_->wait(stream, event); }
  Result<bool> passed(const EventPtr& event) override {
    if (!looks()) return false;
    return device_->passed(event);
  }
  Result<bool> capturing(StreamId stream) override { return device_->capturing(stream); }
  Status copy(void* to, const void* from, size_t bytes, Direction direction, StreamId stream) override {
    return device_->copy(to, from, bytes, direction, stream);
  }
  Status copy_rows(void* to, const void* from, const CopyRows& rows, Direction direction, StreamId stream) override {
    return device_->copy_rows(to, from, rows, direction, stream);
  }
  Status synchronize(const EventPtr& event) override { return device_->synchronize(event); }
  Result<EventPtr> record_timed(StreamId stream) override { return device_->record_timed(stream); }
  Result<double> seconds_between(const EventPtr& begin, const EventPtr& end) override {
    return device_->seconds_between(begin, end);
  }
  Status register_host(void* data, size_t bytes) override { return device_->register_host(data, bytes); }
  void unregister_host(void* data, size_t bytes) noexcept override { device_->unregister_host(data, bytes); }

 private:
  bool looks() noexcept {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return (z ^ (z >> 31)) % 100 < looks_in_100_;
  }

  const std::shared_ptr<Device> device_;
  std::atomic<unsigned> looks_in_100_;
  std::atomic<uint64_t> state_;
};

}  // namespace ebbtide::test
