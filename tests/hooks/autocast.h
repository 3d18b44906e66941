// Autocast on the CPU, without Python.
#pragma once

#include <ATen/autocast_mode.h>

namespace ebbtide::test {

/// bfloat16 on this thread while it lives. Casts of weights are kept until the outermost ends, as in Python.
class Autocast {
 public:
  Autocast() {
    at::autocast::increment_nesting();
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  }
  ~Autocast() {
    at::autocast::set_autocast_enabled(at::kCPU, false);
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;
};

}  // namespace ebbtide::test
