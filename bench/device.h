// Where the C++ contender trains, and what a fair step is there; device.py is the same in Python.
#pragma once

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdlib>
#include <optional>
#include <string>

#include "text.h"

namespace bench {

class StepOn {
 public:
  explicit StepOn(const std::string& device) : device_(device) {
    if (!on_gpu()) return;
    if (!at::hasCUDA()) throw BadInput("--device cuda: torch finds no GPU here");
    // Two plain runs must be equal to the last bit, or nothing can be compared with them.
    ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
    at::globalContext().lazyInitDevice(c10::kCUDA);
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
    device_ = c10::Device(c10::kCUDA, 0);
  }

  const c10::Device& device() const noexcept { return device_; }

  /// float32 on the CPU, bfloat16 autocast on a GPU, while it lives: what people train in.
  class Precision {
   public:
    explicit Precision(bool autocast) : autocast_(autocast) {
      if (!autocast_) return;
      at::autocast::set_autocast_enabled(at::kCUDA, true);
      at::autocast::set_autocast_dtype(at::kCUDA, at::kBFloat16);
      at::autocast::increment_nesting();
    }
    ~Precision() {
      if (!autocast_) return;
      if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
      at::autocast::set_autocast_enabled(at::kCUDA, false);
    }
    Precision(const Precision&) = delete;
    Precision& operator=(const Precision&) = delete;

   private:
    const bool autocast_;
  };
  Precision precision() const { return Precision(on_gpu()); }

  void wait() const {
    if (on_gpu()) c10::impl::VirtualGuardImpl(c10::kCUDA).synchronizeDevice(0);
  }
  void forget_peak() const {
    if (on_gpu()) c10::getDeviceAllocator(c10::kCUDA)->resetPeakStats(0);
  }
  /// The most that torch's allocator had given out; none on the CPU, where the resident set is what counts.
  std::optional<int64_t> peak_bytes() const {
    if (!on_gpu()) return std::nullopt;
    return c10::getDeviceAllocator(c10::kCUDA)->getDeviceStats(0).allocated_bytes[0].peak;
  }

 private:
  bool on_gpu() const noexcept { return device_.is_cuda(); }

  c10::Device device_;
};

}  // namespace bench
