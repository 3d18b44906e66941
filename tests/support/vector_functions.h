// What must have happened in a process before two runs on its CPU can be compared bit by bit.
#pragma once

#include <ATen/ATen.h>

namespace ebbtide::test {

/// Calls each function for which torch's CPU kernels go to oneMKL's vector library, on one element and so on one thread.
/// That library looks for a function's kernel when it is first called; threads that call first together may run a less
/// precise one, once (pytorch issue 188792, seen with the oneMKL of torch 2.10 and 2.11): plain training is not like itself.
inline void settle_vector_functions() {
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const at::Tensor one = at::full({1}, 0.5, type);
    for (const auto function : {at::acos, at::asin, at::atan, at::cos, at::erf, at::erfc, at::erfinv, at::exp, at::log,
                                at::log2, at::log10, at::sin, at::sqrt, at::tan, at::tanh, at::trunc})
      (void)function(one);
  }
}

}  // namespace ebbtide::test
