// A CUDA device.
#pragma once

#include <ebbtide/transfer/cuda_api.h>
#include <ebbtide/transfer/cuda_context.h>
#include <ebbtide/transfer/cuda_event_pool.h>
#include <ebbtide/transfer/device.h>

#include <array>
#include <memory>
#include <span>
#include <string>
#include <utility>

namespace ebbtide {

/// Works in the device's primary context, as CUDA's runtime and torch do. Any thread may call: what context is current
/// there, and in what capture mode it is, stays as it was.
///
/// Stream:   a StreamId is the CUstream's value; 0 is the legacy default stream. The two copy streams are non-blocking:
///           they order nothing with it.
/// Capture:  no call breaks a capture, on any thread; record(), wait() and copy() on a stream that is being captured
///           are kInvalid and leave it alone.
/// Lifetime: the streams end with the device, after what is enqueued on them; nothing waits.
/// Errors:   as CudaContext; where passed() cannot be told now, it is not passed.
class CudaDevice final : public Device {
 public:
  /// Errors: as CudaContext; kUnsupported where there is no such device.
  static Result<std::shared_ptr<CudaDevice>> open(std::shared_ptr<CudaApi> api, int ordinal);
  ~CudaDevice() override;
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  bool is_host() const noexcept override { return false; }
  std::string name() const override { return name_; }
  std::string pci_address() const override { return pci_address_; }
  Result<DeviceMemory> memory() override;

  StreamId copy_stream(Direction direction) noexcept override;
  Result<bool> capturing(StreamId stream) override;
  Result<EventPtr> record(StreamId stream) override;
  Status wait(StreamId stream, const EventPtr& event) override;
  Result<bool> passed(const EventPtr& event) override;
  Status copy(void* to, const void* from, size_t bytes, Direction direction, StreamId stream) override;
  Status copy_rows(void* to, const void* from, const CopyRows& rows, Direction direction, StreamId stream) override;
  CopiesEnqueued copy_each(std::span<const CopyChunk> chunks, Direction direction, StreamId stream) override;
  Status synchronize(const EventPtr& event) override;
  Result<EventPtr> record_timed(StreamId stream) override;
  /// To half a microsecond.
  Result<double> seconds_between(const EventPtr& begin, const EventPtr& end) override;

  /// For all devices of the process at once. Errors: kInvalid where some of it is registered already, kOverCapacity,
  /// kUnsupported.
  Status register_host(void* data, size_t bytes) override;
  void unregister_host(void* data, size_t bytes) noexcept override;

 private:
  explicit CudaDevice(std::shared_ptr<CudaContext> context);
  Status set_up();
  bool is_ours(StreamId stream) const noexcept;
  Status refuse_if_capturing(StreamId stream);
  Result<EventPtr> record(CudaEventPool& pool, StreamId stream);
  Result<CudaEvent> handle_of(const EventPtr& event) const;

  const std::shared_ptr<CudaContext> context_;
  const std::shared_ptr<CudaEventPool> events_;
  const std::shared_ptr<CudaEventPool> timed_events_;
  std::array<CudaStream, 2> copy_streams_{};
  std::string name_;
  std::string pci_address_;
};

}  // namespace ebbtide
