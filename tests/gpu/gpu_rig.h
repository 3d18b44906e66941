// The rig of tests/support/device_rig.h on a real GPU.
#pragma once

#include <ebbtide/transfer/cuda_device.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/gpu/gpu_driver.h"

namespace ebbtide::test {

/// Threads: any. Lifetime: outlives its memory, which is finished with when it ends.
class GpuRig {
 public:
  static constexpr bool kHolds = true;
  static std::optional<std::string> unavailable() { return GpuDriver::unavailable(); }

  /// REQUIRES: !unavailable().
  GpuRig();
  ~GpuRig();
  GpuRig(const GpuRig&) = delete;
  GpuRig& operator=(const GpuRig&) = delete;

  Device& device() { return *device_; }
  CudaDevice& cuda() { return *device_; }
  std::shared_ptr<Device> share() { return device_; }
  StreamId make_stream(const std::string& name);
  std::shared_ptr<std::byte> allocate(size_t bytes, StreamId stream);
  std::shared_ptr<std::byte> host(size_t bytes);
  void hold(StreamId stream, std::chrono::microseconds time);
  void fill(StreamId stream, std::byte* data, size_t bytes, int value);
  void write(StreamId stream, std::byte* data, size_t bytes, uint32_t seed);
  void check(StreamId stream, const std::byte* data, size_t bytes, uint32_t seed);
  uint32_t wrong();
  void host_reads(const void*, size_t) {}
  void host_writes(const void*, size_t) {}
  void finish();
  void expect_clean();
  void let_go() { device_.reset(); }
  void begin_capture(StreamId stream);
  bool end_capture(StreamId stream);
  static double least_seconds(std::chrono::microseconds time) { return static_cast<double>(time.count()) * 0.9e-6; }

 private:
  void enter();
  void launch(void* kernel, StreamId stream, unsigned threads, std::vector<void*> parameters);

  const GpuDriver driver_;
  const std::shared_ptr<CudaApi> api_;
  CudaContextHandle context_ = nullptr;
  std::shared_ptr<CudaDevice> device_;
  void* module_ = nullptr;
  void* spin_ = nullptr;
  void* write_ = nullptr;
  void* check_ = nullptr;
  CudaAddress wrong_ = 0;
  std::mutex mutex_;
  // All below: guarded by mutex_.
  std::vector<CudaStream> streams_;
  std::map<std::pair<StreamId, size_t>, std::vector<CudaAddress>> free_;
  std::vector<CudaAddress> allocated_;
};

}  // namespace ebbtide::test
