// Two pretend accelerators on torch's PrivateUse1: real models and the real autograd engine run on them, without a GPU.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/chaos_device.h"

namespace ebbtide::test {

struct SimOptions {
  uint64_t seed = 0;         ///< print it when a test fails; each device draws its own schedule from it
  std::optional<Pace> pace;  ///< none: each stream draws its own from the seed
  Bytes capacity = GiB(1);   ///< of a device; more raises c10::OutOfMemoryError
};

/// One life of the devices "sim:0" and "sim:1". Each is a ChaosDevice: its streams run late and interleaved as the seed
/// decides, freed memory is poisoned, missing waits are seen. Of torch it has an allocator (recordStream, cap, peak), a
/// device guard (streams, events, current stream a thread; c10::Stream::native_handle() is the ChaosDevice's StreamId),
/// and the CPU's operators, see operators.h.
///
/// Two things are kinder than a GPU: copies between the two devices go by the host, which waits, and so does a copy to
/// the CPU, non_blocking or not. Graph capture and event timing do not exist.
///
/// Threads:  made and destroyed while no other thread uses the devices; at most one at a time.
/// Lifetime: tensors and events may outlive it, but serve no computation any more.
class SimAccelerator {
 public:
  explicit SimAccelerator(SimOptions options = {});
  ~SimAccelerator();
  SimAccelerator(const SimAccelerator&) = delete;
  SimAccelerator& operator=(const SimAccelerator&) = delete;

  static constexpr c10::DeviceIndex kDevices = 2;
  static c10::Device device(c10::DeviceIndex index = 0) { return {c10::DeviceType::PrivateUse1, index}; }

  const std::shared_ptr<ChaosDevice>& chaos(c10::DeviceIndex index = 0) const;
  /// A stream that is not the default one; one of four in turn.
  c10::Stream side_stream(c10::DeviceIndex index = 0) const;

  /// Bytes of live tensors now, and the most since the last reset. What recordStream holds back counts as live.
  Bytes allocated(c10::DeviceIndex index = 0) const;
  Bytes peak(c10::DeviceIndex index = 0) const;
  void reset_peak();
  /// From now on the tensor's memory is not among the others, until it is freed; and the most that those others were.
  /// So a test learns what a program needs beside the tensors that it set apart.
  static void set_apart(const at::Tensor& tensor);
  Bytes peak_of_others(c10::DeviceIndex index = 0) const;

  /// Runs all that is enqueued and lists what went wrong on both devices: races, misuse, and operators that failed when
  /// their turn came.
  std::vector<std::string> complaints() const;
};

/// What Module::to cannot do: torch refuses to turn a CPU parameter into one of PrivateUse1.
/// REQUIRES: no graph has used the tensor yet.
void move_in_place(const at::Tensor& tensor, c10::Device device);

}  // namespace ebbtide::test
