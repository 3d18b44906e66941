// A device as the store sees it: memory that streams order, and copies to and from host memory.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/result.h>
#include <ebbtide/transfer/copy_chunks.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

namespace ebbtide {

/// A queue of work on a device, as the framework names it (CUDA: the CUstream, 0 the default stream); it means nothing
/// to another device. The host device has one, kHostStream, on which all is done at once.
enum class StreamId : uint64_t {};
inline constexpr StreamId kHostStream{0};

enum class Direction { kOut, kIn };  ///< device to host, host to device

/// A point on a stream. Pooled: giving one back costs nothing.
/// Lifetime: may outlive the device's owner. Threads: shared by reference counting, used from any.
class Event {
 public:
  virtual ~Event() = default;
};
using EventPtr = std::shared_ptr<Event>;

/// Whether a failure of record(), passed() or synchronize() means that the device is lost, see Device.
constexpr bool means_lost(FailureCode code) noexcept {
  return code != FailureCode::kOverCapacity && code != FailureCode::kInvalid && code != FailureCode::kUnsupported;
}

/// Of one copy: `count` times `row_bytes`, each row so many bytes after the one before it. Pitches are at least a row.
struct CopyRows {
  size_t row_bytes = 0;
  size_t count = 0;
  size_t to_pitch = 0;
  size_t from_pitch = 0;
};

/// How many of several copies were enqueued, from the first on; if not all, why not the next.
struct CopiesEnqueued {
  size_t count = 0;
  std::optional<Failure> refused;
};

struct DeviceMemory {
  Bytes free;
  Bytes total;
};

/// Threads: all methods from any. No method waits for a stream, but synchronize().
/// Errors:  values only; it never throws and never aborts. kOverCapacity, kInvalid and kUnsupported concern that one
///          call, and what is enqueued goes on. Any other failure of record(), passed() or synchronize() means that the
///          device is lost: it touches no memory any more, and says so in every later result (a sticky error).
///          kDeviceLost, or kCancelled where it ends with the process. The message names the device and what failed.
class Device {
 public:
  virtual ~Device() = default;

  /// True where "device" memory is host memory: tensors are held, never copied, and spill from where they lie.
  virtual bool is_host() const noexcept = 0;
  virtual std::string name() const = 0;
  /// For NUMA placement; empty where the device is not on a PCI bus.
  virtual std::string pci_address() const = 0;
  virtual Result<DeviceMemory> memory() = 0;

  /// The store's own stream for copies of this direction. Never the stream of a computation.
  virtual StreamId copy_stream(Direction direction) noexcept = 0;
  /// True while nothing may be enqueued on `stream` from outside, since it is being captured into a graph (CUDA: also
  /// the legacy stream while a stream is captured that is ordered with it). What is saved meanwhile can only be kept.
  /// Changes by what the stream's user does, so a caller asks on that thread, right before it enqueues. Always false for
  /// devices without such graphs. Errors: kInvalid where there is no such stream.
  virtual Result<bool> capturing(StreamId stream) = 0;

  /// A point after all that was enqueued on `stream` so far. Errors: kOverCapacity where no event could be made now;
  /// ask again later.
  virtual Result<EventPtr> record(StreamId stream) = 0;
  /// Work enqueued on `stream` from now on runs after `event`.
  virtual Status wait(StreamId stream, const EventPtr& event) = 0;
  /// Whether the event has passed. What this thread does after `true` is ordered after the event.
  virtual Result<bool> passed(const EventPtr& event) = 0;
  /// Enqueues a copy. Host memory should be registered, or the copy may be synchronous.
  virtual Status copy(void* to, const void* from, size_t bytes, Direction direction, StreamId stream) = 0;
  /// Enqueues a copy of rows with gaps between them: all of it, or, where it fails, nothing.
  virtual Status copy_rows(void* to, const void* from, const CopyRows& rows, Direction direction, StreamId stream) = 0;
  /// Enqueues copies, one behind the other: as copy() and copy_rows() for each, but what a device asks of its driver
  /// around every call may be asked once for all.
  virtual CopiesEnqueued copy_each(std::span<const CopyChunk> chunks, Direction direction, StreamId stream) {
    CopiesEnqueued enqueued;
    for (const CopyChunk& chunk : chunks) {
      Status copied = chunk.rows == 1
                          ? copy(chunk.to, chunk.from, chunk.bytes, direction, stream)
                          : copy_rows(chunk.to, chunk.from, {chunk.bytes, chunk.rows, chunk.to_pitch, chunk.from_pitch},
                                      direction, stream);
      if (!copied.ok()) {
        enqueued.refused = std::move(copied).failure();
        break;
      }
      ++enqueued.count;
    }
    return enqueued;
  }
  /// Blocks until `event` has passed. For close() and tests only.
  virtual Status synchronize(const EventPtr& event) = 0;

  /// As record(), with the time; costs more, on the device too. Errors: kUnsupported where the device times nothing.
  virtual Result<EventPtr> record_timed(StreamId) {
    return Failure{FailureCode::kUnsupported, 0, name() + " does not time its events."};
  }
  /// From `begin` to `end`. Errors: kInvalid where one is not of record_timed() or has not passed.
  virtual Result<double> seconds_between(const EventPtr& begin [[maybe_unused]], const EventPtr& end [[maybe_unused]]) {
    return Failure{FailureCode::kUnsupported, 0, name() + " does not time its events."};
  }

  virtual Status register_host(void* data, size_t bytes) = 0;
  virtual void unregister_host(void* data, size_t bytes) noexcept = 0;
};

}  // namespace ebbtide
