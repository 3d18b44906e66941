// A device that forgets one kind of order.
#pragma once

#include <ebbtide/transfer/device.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>

namespace ebbtide::test {

/// The device with one of the store's orders left out: what the race detector must then see.
class MutantDevice final : public Device {
 public:
  enum class Mutation {
    kNone,
    kComputeDoesNotWait,  ///< neither before memory is dropped under its copy, nor before what came back is read
    kCopyOutDoesNotWait,  ///< for the producer
    kCopyInDoesNotWait,   ///< for the destination's last owner, or for the copy out that fills the host memory
    kPassedTooEarly,      ///< memory is reused while a copy still touches it
  };

  MutantDevice(std::shared_ptr<Device> device, Mutation mutation) : device_(std::move(device)), mutation_(mutation) {}

  bool is_host() const noexcept override { return false; }
  std::string name() const override { return device_->name(); }
  std::string pci_address() const override { return {}; }
  Result<ebbtide::DeviceMemory> memory() override { return device_->memory(); }
  StreamId copy_stream(Direction direction) noexcept override { return device_->copy_stream(direction); }
  Result<bool> capturing(StreamId stream) override { return device_->capturing(stream); }
  Result<EventPtr> record(StreamId stream) override { return device_->record(stream); }
  Status wait(StreamId stream, const EventPtr& event) override {
    const bool out = stream == device_->copy_stream(Direction::kOut);
    const bool in = stream == device_->copy_stream(Direction::kIn);
    if (mutation_ == Mutation::kCopyOutDoesNotWait && out) return success();
    if (mutation_ == Mutation::kCopyInDoesNotWait && in) return success();
    if (mutation_ == Mutation::kComputeDoesNotWait && !out && !in) return success();
    return device_->wait(stream, event);
  }
  Result<bool> passed(const EventPtr& event) override {
    if (mutation_ == Mutation::kPassedTooEarly) return true;
    return device_->passed(event);
  }
  Status copy(void* to, const void* from, size_t bytes, Direction direction, StreamId stream) override {
    if (direction == Direction::kOut) host_memory_ = static_cast<std::byte*>(to);
    return device_->copy(to, from, bytes, direction, stream);
  }
  Status copy_rows(void* to, const void* from, const CopyRows& rows, Direction direction, StreamId stream) override {
    if (direction == Direction::kOut) host_memory_ = static_cast<std::byte*>(to);
    return device_->copy_rows(to, from, rows, direction, stream);
  }
  Status synchronize(const EventPtr& event) override { return device_->synchronize(event); }
  Result<EventPtr> record_timed(StreamId stream) override { return device_->record_timed(stream); }
  Result<double> seconds_between(const EventPtr& begin, const EventPtr& end) override {
    return device_->seconds_between(begin, end);
  }
  Status register_host(void* data, size_t bytes) override { return device_->register_host(data, bytes); }
  void unregister_host(void* data, size_t bytes) noexcept override { device_->unregister_host(data, bytes); }

  /// Where the last copy out went.
  std::byte* host_memory() const noexcept { return host_memory_; }

 private:
  const std::shared_ptr<Device> device_;
  const Mutation mutation_;
  std::atomic<std::byte*> host_memory_{nullptr};
};

}  // namespace ebbtide::test
