// The device of CPU tensors: its memory is host memory, and everything on its one stream is done at once.
#pragma once

#include <ebbtide/transfer/device.h>

namespace ebbtide {

/// Tensors of this device are held, never copied: the store asks is_host() first. Copies are there for code that treats
/// all devices alike.
///
/// Stream: kHostStream only. A copy is done when copy() returns, on the calling thread, so every event has passed.
/// Errors: kInvalid for any other stream; kUnsupported from memory() where the system does not tell.
class HostDevice final : public Device {
 public:
  bool is_host() const noexcept override { return true; }
  std::string name() const override { return "host"; }
  std::string pci_address() const override { return {}; }
  /// Of the machine, not of the cgroup: what the pool may take is the pool's to find out.
  Result<DeviceMemory> memory() override;

  StreamId copy_stream(Direction) noexcept override { return kHostStream; }
  Result<bool> capturing(StreamId stream) override;
  Result<EventPtr> record(StreamId stream) override;
  Status wait(StreamId stream, const EventPtr& event) override;
  Result<bool> passed(const EventPtr& event) override;
  Status copy(void* to, const void* from, size_t bytes, Direction direction, StreamId stream) override;
  Status copy_rows(void* to, const void* from, const CopyRows& rows, Direction direction, StreamId stream) override;
  Status synchronize(const EventPtr& event) override;

  /// Nothing to do: no DMA reads or writes this device's memory.
  Status register_host(void* data, size_t bytes) override;
  void unregister_host(void* data, size_t bytes) noexcept override;

 private:
  const EventPtr passed_ = std::make_shared<Event>();  // one for all: they are alike
};

}  // namespace ebbtide
