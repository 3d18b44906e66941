// How kernels round, beside what they are given: what a program may set for a while.
#pragma once

#include <ATen/Context.h>

#include <array>
#include <cfenv>

namespace ebbtide {

/// The number of threads, the floating-point environment of this thread (denormals too), whether oneDNN is used, and how
/// precise fp32 matmuls and convolutions are.
/// Threads: taken and set on the thread that computes; the last two belong to the process.
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
  bool mkldnn_;
  std::array<Precision, 4> precisions_;
};

}  // namespace ebbtide
