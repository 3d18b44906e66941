#include <ebbtide/transfer/host_device.h>

#include <sys/sysinfo.h>

#include <cerrno>
#include <cstring>

namespace ebbtide {
namespace {

Status only_host_stream(StreamId stream) {
  if (stream == kHostStream) return success();
  return Failure{
      FailureCode::kInvalid, 0,
      "The host device has one stream, kHostStream, and not " + std::to_string(static_cast<uint64_t>(stream)) + "."};
}

}  // namespace

Result<DeviceMemory> HostDevice::memory() {
  struct sysinfo info {};
  if (sysinfo(&info) != 0) {
    const int error = errno;
    return Failure{FailureCode::kUnsupported, error, std::string("sysinfo failed: ") + std::strerror(error) + "."};
  }
  const auto unit = static_cast<int64_t>(info.mem_unit);
  return DeviceMemory{Bytes(static_cast<int64_t>(info.freeram) * unit),
                      Bytes(static_cast<int64_t>(info.totalram) * unit)};
}

Result<bool> HostDevice::capturing(StreamId stream) {
  if (Status ours = only_host_stream(stream); !ours.ok()) return ours.failure();
  return false;
}

Result<EventPtr> HostDevice::record(StreamId stream) {
  if (Status ours = only_host_stream(stream); !ours.ok()) return ours.failure();
  return passed_;
}

Status HostDevice::wait(StreamId stream, const EventPtr&) {
  return only_host_stream(stream);
}

Result<bool> HostDevice::passed(const EventPtr&) {
  return true;
}

Status HostDevice::copy(void* to, const void* from, size_t bytes, Direction, StreamId stream) {
  if (Status ours = only_host_stream(stream); !ours.ok()) return ours;
  if (bytes > 0) std::memcpy(to, from, bytes);
  return success();
}

Status HostDevice::copy_rows(void* to, const void* from, const CopyRows& rows, Direction, StreamId stream) {
  if (Status ours = only_host_stream(stream); !ours.ok()) return ours;
  for (size_t row = 0; row < rows.count; ++row)
    std::memcpy(static_cast<std::byte*>(to) + row * rows.to_pitch,
                static_cast<const std::byte*>(from) + row * rows.from_pitch, rows.row_bytes);
  return success();
}

Status HostDevice::synchronize(const EventPtr&) {
  return success();
}

Status HostDevice::register_host(void*, size_t) {
  return success();
}

void HostDevice::unregister_host(void*, size_t) noexcept {}

}  // namespace ebbtide
