#include <ebbtide/transfer/cuda_device.h>

#include <algorithm>
#include <cctype>

namespace ebbtide {
namespace {

constexpr auto kSuccess = CudaResult::kSuccess;

CudaStream handle(StreamId stream) {
  return reinterpret_cast<CudaStream>(static_cast<uintptr_t>(stream));
}

StreamId id(CudaStream stream) {
  return StreamId{reinterpret_cast<uintptr_t>(stream)};
}

CudaAddress address(const void* data) {
  return reinterpret_cast<uintptr_t>(data);
}

CudaResult enqueue_rows(CudaApi& api, const CopyChunk& rows, bool out, CudaStream stream) {
  CudaMemcpy2D copy;
  copy.from_pitch = rows.from_pitch;
  copy.to_pitch = rows.to_pitch;
  copy.width = rows.bytes;
  copy.height = rows.rows;
  if (out) {
    copy.from_type = CudaMemoryType::kDevice;
    copy.from_device = address(rows.from);
    copy.to_type = CudaMemoryType::kHost;
    copy.to_host = rows.to;
  } else {
    copy.from_type = CudaMemoryType::kHost;
    copy.from_host = rows.from;
    copy.to_type = CudaMemoryType::kDevice;
    copy.to_device = address(rows.to);
  }
  return api.memcpy_2d_async(&copy, stream);
}

CudaResult enqueue(CudaApi& api, const CopyChunk& chunk, bool out, CudaStream stream) {
  if (chunk.total_bytes() == 0) return kSuccess;
  if (chunk.rows > 1) return enqueue_rows(api, chunk, out, stream);
  return out ? api.memcpy_device_to_host_async(chunk.to, address(chunk.from), chunk.bytes, stream)
             : api.memcpy_host_to_device_async(address(chunk.to), chunk.from, chunk.bytes, stream);
}

}  // namespace

CudaDevice::CudaDevice(std::shared_ptr<CudaContext> context)
    : context_(std::move(context)),
      events_(std::make_shared<CudaEventPool>(context_, kCudaEventDisableTiming)),
      timed_events_(std::make_shared<CudaEventPool>(context_, 0)) {}

Result<std::shared_ptr<CudaDevice>> CudaDevice::open(std::shared_ptr<CudaApi> api, int ordinal) {
  auto context = CudaContext::retain(std::move(api), ordinal);
  if (!context) return context.failure();
  std::shared_ptr<CudaDevice> device(new CudaDevice(std::move(context).value()));
  if (Status ready = device->set_up(); !ready.ok()) return ready.failure();
  return device;
}

Status CudaDevice::set_up() {
  std::array<char, 256> name{};
  std::array<char, 32> pci{};
  Status named = context_->run("Asking for the device's name", [&](CudaApi& api) {
    return api.device_get_name(name.data(), static_cast<int>(name.size()) - 1, context_->device());
  });
  if (!named.ok()) return named;
  name_ = name.data();

  Status placed = context_->run("Asking for the device's PCI address", [&](CudaApi& api) {
    return api.device_get_pci_bus_id(pci.data(), static_cast<int>(pci.size()) - 1, context_->device());
  });
  if (!placed.ok()) return placed;
  pci_address_ = pci.data();
  for (char& letter : pci_address_) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));

  // Of the greatest priority: copies by the copy engines have none, but where the driver lets a kernel copy, or puts
  // streams of one priority into one hardware queue, a fetch that a computation waits for is not behind another one.
  return context_->run("Making the copy streams", [this](CudaApi& api) {
    int least = 0, greatest = 0;
    CudaResult result = api.context_get_stream_priority_range(&least, &greatest);
    for (CudaStream& stream : copy_streams_)
      if (result == kSuccess) result = api.stream_create_with_priority(&stream, kCudaStreamNonBlocking, greatest);
    return result;
  });
}

CudaDevice::~CudaDevice() {
  // The driver keeps a stream until what is enqueued on it is done. A failure is that of a lost context.
  (void)context_->call([this](CudaApi& api) {
    for (const CudaStream stream : copy_streams_)
      if (stream != nullptr) (void)api.stream_destroy(stream);
    return kSuccess;
  });
}

Result<DeviceMemory> CudaDevice::memory() {
  size_t free = 0, total = 0;
  Status asked =
      context_->run("Asking for free memory", [&](CudaApi& api) { return api.memory_get_info(&free, &total); });
  if (!asked.ok()) return asked.failure();
  return DeviceMemory{Bytes(static_cast<int64_t>(free)), Bytes(static_cast<int64_t>(total))};
}

StreamId CudaDevice::copy_stream(Direction direction) noexcept {
  return id(copy_streams_[static_cast<size_t>(direction)]);
}

Result<bool> CudaDevice::capturing(StreamId stream) {
  auto capture = CudaCaptureStatus::kNone;
  Status asked = context_->run("Asking whether a stream is being captured", [&](CudaApi& api) {
    const CudaResult result = api.stream_is_capturing(handle(stream), &capture);
    if (result != CudaResult::kStreamCaptureImplicit) return result;
    capture = CudaCaptureStatus::kActive;  // the legacy stream, while a stream is captured that is ordered with it
    return kSuccess;
  });
  if (!asked.ok()) return asked.failure();
  return capture != CudaCaptureStatus::kNone;
}

Result<EventPtr> CudaDevice::record(StreamId stream) {
  return record(*events_, stream);
}

Result<EventPtr> CudaDevice::record_timed(StreamId stream) {
  return record(*timed_events_, stream);
}

Status CudaDevice::wait(StreamId stream, const EventPtr& event) {
  const Result<CudaEvent> waited_for = handle_of(event);
  if (!waited_for) return waited_for.failure();
  if (Status free = refuse_if_capturing(stream); !free.ok()) return free;
  return context_->run("Making a stream wait for an event",
                       [&](CudaApi& api) { return api.stream_wait_event(handle(stream), waited_for.value(), 0); });
}

Result<bool> CudaDevice::passed(const EventPtr& event) {
  const Result<CudaEvent> asked_for = handle_of(event);
  if (!asked_for) return asked_for.failure();
  if (auto failure = context_->lost()) return *std::move(failure);
  const CudaResult result = context_->call([&](CudaApi& api) { return api.event_query(asked_for.value()); });
  if (result == kSuccess) return true;
  switch (failure_code(result)) {
    case FailureCode::kOverCapacity:
    case FailureCode::kUnsupported:
      return false;
    case FailureCode::kInvalid:
      if (result == CudaResult::kNotReady || is_capture_error(result)) return false;
      // The event is one of ours: only the end of its context can have made it invalid.
      return context_->failure(CudaResult::kContextIsDestroyed, "Looking at an event");
    default:
      return context_->failure(result, "Looking at an event");
  }
}

Status CudaDevice::copy(void* to, const void* from, size_t bytes, Direction direction, StreamId stream) {
  const CopyChunk chunk{to, from, bytes};
  CopiesEnqueued enqueued = copy_each({&chunk, 1}, direction, stream);
  return enqueued.refused ? Status(*std::move(enqueued.refused)) : success();
}

Status CudaDevice::copy_rows(void* to, const void* from, const CopyRows& rows, Direction direction, StreamId stream) {
  const CopyChunk chunk{to, from, rows.row_bytes, rows.count, rows.to_pitch, rows.from_pitch};
  CopiesEnqueued enqueued = copy_each({&chunk, 1}, direction, stream);
  return enqueued.refused ? Status(*std::move(enqueued.refused)) : success();
}

CopiesEnqueued CudaDevice::copy_each(std::span<const CopyChunk> chunks, Direction direction, StreamId stream) {
  CopiesEnqueued enqueued;
  if (Status free = refuse_if_capturing(stream); !free.ok()) {
    enqueued.refused = std::move(free).failure();
    return enqueued;
  }
  const bool out = direction == Direction::kOut;
  Status copied = context_->run(out ? "Copying from the device" : "Copying to the device", [&](CudaApi& api) {
    for (; enqueued.count < chunks.size(); ++enqueued.count) {
      const CudaResult result = enqueue(api, chunks[enqueued.count], out, handle(stream));
      if (result != kSuccess) return result;
    }
    return kSuccess;
  });
  if (!copied.ok()) enqueued.refused = std::move(copied).failure();
  return enqueued;
}

Status CudaDevice::synchronize(const EventPtr& event) {
  const Result<CudaEvent> waited_for = handle_of(event);
  if (!waited_for) return waited_for.failure();
  return context_->run("Waiting for an event", [&](CudaApi& api) { return api.event_synchronize(waited_for.value()); });
}

Status CudaDevice::register_host(void* data, size_t bytes) {
  return context_->run("Registering host memory",
                       [&](CudaApi& api) { return api.host_register(data, bytes, kCudaHostRegisterPortable); });
}

void CudaDevice::unregister_host(void* data, size_t) noexcept {
  // Nobody can do anything about a failure: memory that is not registered, or a lost context, which registers none.
  (void)context_->call([&](CudaApi& api) { return api.host_unregister(data); });
}

Result<double> CudaDevice::seconds_between(const EventPtr& begin, const EventPtr& end) {
  for (const EventPtr* event : {&begin, &end}) {
    const auto* pooled = dynamic_cast<const CudaPooledEvent*>(event->get());
    if (pooled == nullptr || pooled->pool() != timed_events_.get())
      return Failure{FailureCode::kInvalid, 0, "Time lies between two events of this device's record_timed()."};
  }
  float milliseconds = 0;
  Status measured = context_->run("Measuring the time between two events", [&](CudaApi& api) {
    return api.event_elapsed_time(&milliseconds, handle_of(begin).value(), handle_of(end).value());
  });
  if (!measured.ok()) return measured.failure();
  return static_cast<double>(milliseconds) / 1e3;
}

bool CudaDevice::is_ours(StreamId stream) const noexcept {
  return std::ranges::find(copy_streams_, handle(stream)) != copy_streams_.end();
}

// What is enqueued on a stream that is being captured becomes part of the graph, and would drag our stream into the
// capture. Ours are never captured.
Status CudaDevice::refuse_if_capturing(StreamId stream) {
  if (is_ours(stream)) return success();
  const Result<bool> captured = capturing(stream);
  if (!captured) return captured.failure();
  if (!captured.value()) return success();
  return Failure{FailureCode::kInvalid, 0,
                 "The stream is being captured into a CUDA graph: nothing is enqueued on it."};
}

Result<EventPtr> CudaDevice::record(CudaEventPool& pool, StreamId stream) {
  if (Status free = refuse_if_capturing(stream); !free.ok()) return free.failure();
  return pool.record(handle(stream));
}

Result<CudaEvent> CudaDevice::handle_of(const EventPtr& event) const {
  const auto* pooled = dynamic_cast<const CudaPooledEvent*>(event.get());
  if (pooled == nullptr || (pooled->pool() != events_.get() && pooled->pool() != timed_events_.get()))
    return Failure{FailureCode::kInvalid, 0, "The event is not one of this device."};
  return pooled->handle();
}

}  // namespace ebbtide
