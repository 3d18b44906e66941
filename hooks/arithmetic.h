// How kernels round, beside what they are given: what a program may set for a while.
#pragma once

#include <ATen/Context.h>

#include <array>
#include <cfenv>
#include <cstdint>

namespace ebbtide {

/// The number of threads, the floating-point environment of this thread (denormals too), whether oneDNN and cuDNN are used,
/// how precise matmuls and convolutions are, and whether what is deterministic is asked for.
/// Threads: taken and set on the thread that computes; all but the first two belong to the process.
class Arithmetic {
 public:
  /// As it is now.
  Arithmetic();
  /// From now on, as far as it is another now.
  void set() const;

 private:
  struct Precision {
    at::Float32Backend backend;
    at::Float32Op op;
    at::Float32Precision value;
  };

  int threads_;
  std::fenv_t floating_;
  bool mkldnn_, cudnn_, deterministic_cudnn_, deterministic_, warn_only_;
  at::CuBLASReductionOption halves_, bfloats_;  // what matmuls of these add up in
  std::array<Precision, 4> precisions_;
};

/// What sets two of them apart, of that which kernels of CPUs or of accelerators go by: to be looked at for each tensor that
/// is saved, so only what takes some nanoseconds (11 for CPUs, 30 for accelerators). Not for CPUs how precise oneDNN is:
/// that concerns costly ops, all of whose bytes have a fingerprint.
/// Threads: any; of the thread that asks.
uint64_t arithmetic_now(bool on_host) noexcept;

}  // namespace ebbtide
