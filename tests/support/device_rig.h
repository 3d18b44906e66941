// Devices to test, each with what a program does beside them: the same test runs on every one.
#pragma once

#include <ebbtide/transfer/cuda_device.h>
#include <ebbtide/transfer/host_device.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <string>

#include "tests/support/chaos_device.h"
#include "tests/support/fake_cuda_api.h"

namespace ebbtide::test {

// A rig has:
//   Device& device()
//   StreamId make_stream(name)
//   std::shared_ptr<std::byte> allocate(bytes, stream)   device memory for use on the stream, which it outlives
//   std::shared_ptr<std::byte> host(bytes)               registered host memory, zeroed
//   void hold(stream)                                    what is enqueued on it later does not end soon
//   void fill(stream, data, bytes, value)                a computation on the device
//   void host_reads(data, bytes), host_writes(data, bytes)   tells the race detector, if there is one
//   void finish()                                        all that is enqueued ends
//   void expect_clean()                                  at the end of a test
//   std::shared_ptr<Device> let_go()                     the device, which is then no more the rig's
//   static constexpr bool kHolds                         hold() holds

/// On a lazy device nothing ends before finish() or a synchronize().
class ChaosRig {
 public:
  static constexpr bool kHolds = true;

  Device& device() { return *chaos_; }
  ChaosDevice& chaos() { return *chaos_; }
  StreamId make_stream(const std::string& name) { return chaos_->make_stream(name); }
  std::shared_ptr<std::byte> allocate(size_t bytes, StreamId stream) {
    return chaos_->allocate(bytes, stream, "tensor").value();
  }
  std::shared_ptr<std::byte> host(size_t bytes) { return registered(*chaos_, bytes); }
  void hold(StreamId) {}
  void fill(StreamId stream, std::byte* data, size_t bytes, int value) {
    EXPECT_TRUE(chaos_->launch(stream, "fill", {}, {{data, bytes}}, [=] { std::memset(data, value, bytes); }));
  }
  void host_reads(const void* data, size_t bytes) { chaos_->host_read(data, bytes, "program reads"); }
  void host_writes(const void* data, size_t bytes) { chaos_->host_write(data, bytes, "program writes"); }
  void finish() { chaos_->run_all(); }
  void expect_clean() {
    EXPECT_THAT(chaos_->races(), testing::IsEmpty());
    EXPECT_THAT(chaos_->misuse(), testing::IsEmpty());
  }
  std::shared_ptr<Device> let_go() { return std::move(chaos_); }

  /// Zeroed host memory, registered with the device while it lives.
  static std::shared_ptr<std::byte> registered(Device& device, size_t bytes) {
    auto* const data = new std::byte[bytes]{};
    EXPECT_TRUE(device.register_host(data, bytes));
    return std::shared_ptr<std::byte>(data, [&device, bytes](std::byte* it) {
      device.unregister_host(it, bytes);
      delete[] it;
    });
  }

 private:
  std::shared_ptr<ChaosDevice> chaos_ = std::make_shared<ChaosDevice>(ChaosOptions{.pace = Pace::kLazy});
};

/// CudaDevice over pretend accelerators.
class FakeCudaRig {
 public:
  static constexpr bool kHolds = true;

  Device& device() { return *cuda_; }
  CudaDevice& cuda() { return *cuda_; }
  ChaosDevice& chaos() { return api_->device(); }
  FakeCudaApi& api() { return *api_; }
  StreamId make_stream(const std::string& name) { return chaos().make_stream(name); }
  std::shared_ptr<std::byte> allocate(size_t bytes, StreamId stream) {
    return chaos().allocate(bytes, stream, "tensor").value();
  }
  std::shared_ptr<std::byte> host(size_t bytes) { return ChaosRig::registered(*cuda_, bytes); }
  void hold(StreamId) {}
  void fill(StreamId stream, std::byte* data, size_t bytes, int value) {
    EXPECT_TRUE(chaos().launch(stream, "fill", {}, {{data, bytes}}, [=] { std::memset(data, value, bytes); }));
  }
  void host_reads(const void* data, size_t bytes) { chaos().host_read(data, bytes, "program reads"); }
  void host_writes(const void* data, size_t bytes) { chaos().host_write(data, bytes, "program writes"); }
  void finish() { chaos().run_all(); }
  void expect_clean() {
    EXPECT_THAT(chaos().races(), testing::IsEmpty());
    EXPECT_THAT(api_->misuse(), testing::IsEmpty());
    EXPECT_TRUE(api_->thread_is_as_before());
  }
  std::shared_ptr<Device> let_go() { return std::move(cuda_); }

 private:
  std::shared_ptr<FakeCudaApi> api_ =
      std::make_shared<FakeCudaApi>(std::vector<ChaosOptions>{{.pace = Pace::kLazy}, {.pace = Pace::kLazy}});
  std::shared_ptr<CudaDevice> cuda_ = CudaDevice::open(api_, 0).value();
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
  std::shared_ptr<std::byte> host(size_t bytes) { return ChaosRig::registered(*host_, bytes); }
  void hold(StreamId) {}
  void fill(StreamId, std::byte* data, size_t bytes, int value) { std::memset(data, value, bytes); }
  void host_reads(const void*, size_t) {}
  void host_writes(const void*, size_t) {}
  void finish() {}
  void expect_clean() {}
  std::shared_ptr<Device> let_go() { return std::move(host_); }

 private:
  std::shared_ptr<HostDevice> host_ = std::make_shared<HostDevice>();
};

}  // namespace ebbtide::test
