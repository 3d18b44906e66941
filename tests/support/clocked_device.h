// A pretend accelerator whose streams have clocks: what a step takes follows from what it computes and copies alone.
#pragma once

#include <ebbtide/transfer/device.h>
#include <ebbtide/transfer/device_allocator.h>
#include <ebbtide/transfer/device_storage.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace ebbtide::test {

/// Work is done when it is asked for, in the order of the calls, and takes its time on its stream's clock. The host has a
/// clock too: an event has passed when the host's time has come to it.
/// Threads: one.
class ClockedDevice final : public Device {
 public:
  struct Speeds {
    double out = 50e9;  ///< bytes a second
    double in = 50e9;
    double latency_s = 5e-6;  ///< a copy
  };
  explicit ClockedDevice(Speeds speeds) : speeds_(speeds) {}

  static constexpr StreamId kCompute{1};

  /// The compute stream is busy for so long. The host goes on at once.
  void compute(double seconds) { occupy(kCompute, seconds); }
  void occupy(StreamId stream, double seconds) { begin(stream) += seconds; }
  double compute_now() { return now(kCompute); }
  double now(StreamId stream) { return now_[stream]; }
  /// The host does something else, or waits for the device.
  void host_spends(double seconds) { host_now_ += seconds; }
  void host_waits() { host_now_ = std::max(host_now_, now_[kCompute]); }

  bool is_host() const noexcept override { return false; }
  std::string name() const override { return "clocked"; }
  std::string pci_address() const override { return {}; }
  Result<DeviceMemory> memory() override { return DeviceMemory{GiB(64), GiB(64)}; }
  StreamId copy_stream(Direction direction) noexcept override {
    return StreamId{direction == Direction::kOut ? 2u : 3u};
  }
  Result<bool> capturing(StreamId) override { return capturing_; }
  Result<EventPtr> record(StreamId stream) override { return event(stream, /*timed=*/false); }
  Result<EventPtr> record_timed(StreamId stream) override { return event(stream, /*timed=*/true); }
  Status wait(StreamId stream, const EventPtr& event) override {
    begin(stream) = std::max(begin(stream), time_of(event));
    return success();
  }
  Result<bool> passed(const EventPtr& event) override { return time_of(event) <= host_now_; }
  Result<double> seconds_between(const EventPtr& begin, const EventPtr& end) override {
    const auto& from = static_cast<const At&>(*begin);
    const auto& to = static_cast<const At&>(*end);
    if (!from.timed || !to.timed || to.time > host_now_)
      return Failure{FailureCode::kInvalid, 0, "Not timed, or early."};
    return to.time - from.time;
  }
  Status copy(void* to, const void* from, size_t bytes, Direction direction, StreamId stream) override {
    std::memcpy(to, from, bytes);
    const double speed = direction == Direction::kOut ? speeds_.out : speeds_.in;
    occupy(stream, speeds_.latency_s + static_cast<double>(bytes) / speed);
    return success();
  }
  Status copy_rows(void*, const void*, const CopyRows&, Direction, StreamId) override {
    return Failure{FailureCode::kUnsupported, 0, "No rows here."};
  }
  Status synchronize(const EventPtr& event) override {
    host_now_ = std::max(host_now_, time_of(event));
    return success();
  }
  Status register_host(void*, size_t) override { return success(); }
  void unregister_host(void*, size_t) noexcept override {}

  void capture(bool capturing) { capturing_ = capturing; }

 private:
  struct At final : Event {
    At(double at, bool has_time) : time(at), timed(has_time) {}
    double time;
    bool timed;
  };
  EventPtr event(StreamId stream, bool timed) { return std::make_shared<At>(begin(stream), timed); }
  /// When what is asked for now begins: a stream that was idle has come as far as the host.
  double& begin(StreamId stream) { return now_[stream] = std::max(now_[stream], host_now_); }
  static double time_of(const EventPtr& event) { return static_cast<const At&>(*event).time; }

  const Speeds speeds_;
  std::map<StreamId, double> now_;
  double host_now_ = 0;
  bool capturing_ = false;
};

/// Its memory: host memory, given back at once.
class ClockedStorage final : public DeviceStorage {
 public:
  explicit ClockedStorage(size_t bytes)
      : memory_(static_cast<std::byte*>(std::aligned_alloc(
                    kDeviceAlignment, (bytes + kDeviceAlignment - 1) / kDeviceAlignment * kDeviceAlignment)),
                std::free),
        bytes_(bytes) {}
  ClockedStorage(const ClockedStorage& other) = default;

  std::byte* data() const noexcept override { return memory_.get(); }
  Bytes bytes() const noexcept override { return Bytes(static_cast<int64_t>(bytes_)); }
  int64_t references() const noexcept override { return memory_.use_count(); }
  bool plain() const noexcept override { return true; }
  const void* identity() const noexcept override { return memory_.get(); }

 private:
  std::shared_ptr<std::byte> memory_;
  size_t bytes_;
};

class ClockedAllocator final : public DeviceAllocator {
 public:
  Result<std::shared_ptr<DeviceStorage>> allocate(Bytes bytes, StreamId) override {
    return std::shared_ptr<DeviceStorage>(std::make_shared<ClockedStorage>(static_cast<size_t>(bytes.count())));
  }
};

}  // namespace ebbtide::test
