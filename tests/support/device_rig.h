// Devices to test, each with what a program does beside them: the same test runs on every one.
#pragma once

#include <ebbtide/pinned_pool/page.h>
#include <ebbtide/transfer/cuda_device.h>
#include <ebbtide/transfer/host_device.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/chaos_device.h"
#include "tests/support/fake_cuda_api.h"
#include "tests/support/pattern.h"

namespace ebbtide::test {

// A rig has (PretendRig below; tests/gpu/gpu_rig.h is the real one):
//   Device& device(), std::shared_ptr<Device> share()
//   StreamId make_stream(name)
//   std::shared_ptr<std::byte> allocate(bytes, stream)   device memory for use on the stream; handed out again at once
//   std::shared_ptr<std::byte> host(bytes)               registered host memory, zeroed
//   void hold(stream, time)                              what is enqueued on it later does not end before
//   void fill(stream, data, bytes, value)                computations: one value,
//   void write(stream, data, bytes, seed)                a pattern,
//   void check(stream, data, bytes, seed)                and a look whether it is there
//   uint32_t wrong()                                     words that the looks found wrong; REQUIRES: finish()
//   void host_reads(data, bytes), host_writes(data, bytes)   tells the race detector, if there is one
//   void finish()                                        all that is enqueued ends
//   void expect_clean()                                  at the end of a test
//   void let_go()                                        of the device
//   static constexpr bool kHolds                         hold() holds, for as long as it takes where time is pretended

inline constexpr std::chrono::milliseconds kHoldTime{100};

/// Zeroed host memory in pages of its own: a real driver registers whole pages.
inline std::shared_ptr<std::byte> page_memory(size_t bytes) {
  const size_t page = pinned_pool::page_bytes();
  const size_t whole = (bytes + page - 1) / page * page;
  auto* const data = static_cast<std::byte*>(std::aligned_alloc(page, whole));
  std::memset(data, 0, whole);
  return std::shared_ptr<std::byte>(data, std::free);
}

/// The same, registered with the device while it lives.
inline std::shared_ptr<std::byte> registered_memory(Device& device, size_t bytes) {
  const std::shared_ptr<std::byte> memory = page_memory(bytes);
  EXPECT_TRUE(device.register_host(memory.get(), bytes));
  return std::shared_ptr<std::byte>(memory.get(),
                                    [&device, bytes, memory](std::byte* it) { device.unregister_host(it, bytes); });
}

/// Over a ChaosDevice. Where it is lazy, nothing ends before finish() or a synchronize().
class PretendRig {
 public:
  static constexpr bool kHolds = true;

  Device& device() { return *device_; }
  std::shared_ptr<Device> share() { return device_; }
  ChaosDevice& chaos() { return *chaos_; }
  StreamId make_stream(const std::string& name) { return chaos_->make_stream(name); }
  std::shared_ptr<std::byte> allocate(size_t bytes, StreamId stream) {
    return chaos_->allocate(bytes, stream, "tensor").value();
  }
  std::shared_ptr<std::byte> host(size_t bytes) { return registered_memory(*device_, bytes); }
  void hold(StreamId, std::chrono::microseconds) {}
  void fill(StreamId stream, std::byte* data, size_t bytes, int value) {
    launch(stream, "fill", {}, {{data, bytes}}, [=] { std::memset(data, value, bytes); });
  }
  void write(StreamId stream, std::byte* data, size_t bytes, uint32_t seed) {
    launch(stream, "write", {}, {{data, bytes}}, [=] { write_pattern(data, bytes, seed); });
  }
  void check(StreamId stream, const std::byte* data, size_t bytes, uint32_t seed) {
    launch(stream, "check", {{data, bytes}}, {}, [=, wrong = wrong_] { *wrong += count_wrong(data, bytes, seed); });
  }
  uint32_t wrong() const { return *wrong_; }
  void host_reads(const void* data, size_t bytes) { chaos_->host_read(data, bytes, "program reads"); }
  void host_writes(const void* data, size_t bytes) { chaos_->host_write(data, bytes, "program writes"); }
  void finish() { chaos_->run_all(); }
  void let_go() { device_.reset(); }

 protected:
  PretendRig(std::shared_ptr<ChaosDevice> chaos, std::shared_ptr<Device> device)
      : chaos_(std::move(chaos)), device_(std::move(device)) {}

 private:
  void launch(StreamId stream, const char* what, std::vector<Span> reads, std::vector<Span> writes,
              std::function<void()> work) {
    EXPECT_TRUE(chaos_->launch(stream, what, std::move(reads), std::move(writes), std::move(work)));
  }
  const std::shared_ptr<ChaosDevice> chaos_;
  std::shared_ptr<Device> device_;
  const std::shared_ptr<uint32_t> wrong_ = std::make_shared<uint32_t>(0);  // written under the device's mutex
};

class ChaosRig : public PretendRig {
 public:
  explicit ChaosRig(ChaosOptions options = {.pace = Pace::kLazy}) : ChaosRig(std::make_shared<ChaosDevice>(options)) {}
  void expect_clean() {
    EXPECT_THAT(chaos().races(), testing::IsEmpty());
    EXPECT_THAT(chaos().misuse(), testing::IsEmpty());
  }

 private:
  explicit ChaosRig(const std::shared_ptr<ChaosDevice>& chaos) : PretendRig(chaos, chaos) {}
};

/// CudaDevice over a pretend accelerator.
class FakeCudaRig : public PretendRig {
 public:
  explicit FakeCudaRig(ChaosOptions options = {.pace = Pace::kLazy})
      : FakeCudaRig(std::make_shared<FakeCudaApi>(std::vector<ChaosOptions>{options})) {}
  FakeCudaApi& api() { return *api_; }
  CudaDevice& cuda() { return static_cast<CudaDevice&>(device()); }
  void begin_capture(StreamId stream) { api_->begin_capture(stream, CudaCaptureMode::kGlobal); }
  /// What a hold of `time` is at least seen to take: here an event a millisecond.
  static double least_seconds(std::chrono::microseconds) { return 1e-3; }
  /// Whether it came to a graph.
  bool end_capture(StreamId stream) { return api_->end_capture(stream); }
  void expect_clean() {
    EXPECT_THAT(chaos().races(), testing::IsEmpty());
    EXPECT_THAT(api_->misuse(), testing::IsEmpty());
    EXPECT_EQ(api_->pageable_copies(), 0);
    EXPECT_TRUE(api_->thread_is_as_before());
  }

 private:
  explicit FakeCudaRig(const std::shared_ptr<FakeCudaApi>& api)
      : PretendRig({api, &api->device()}, CudaDevice::open(api, 0).value()), api_(api) {}
  const std::shared_ptr<FakeCudaApi> api_;
};

/// Where device memory is host memory, and all is done at once.
class HostRig {
 public:
  static constexpr bool kHolds = false;

  Device& device() { return *host_; }
  StreamId make_stream(const std::string&) { return kHostStream; }
  std::shared_ptr<std::byte> allocate(size_t bytes, StreamId) {
    return std::shared_ptr<std::byte>(new std::byte[bytes], std::default_delete<std::byte[]>());
  }
  std::shared_ptr<std::byte> host(size_t bytes) { return registered_memory(*host_, bytes); }
  void hold(StreamId, std::chrono::microseconds) {}
  void fill(StreamId, std::byte* data, size_t bytes, int value) { std::memset(data, value, bytes); }
  void host_reads(const void*, size_t) {}
  void host_writes(const void*, size_t) {}
  void finish() {}
  void expect_clean() {}
  void let_go() { host_.reset(); }

 private:
  std::shared_ptr<HostDevice> host_ = std::make_shared<HostDevice>();
};

}  // namespace ebbtide::test
