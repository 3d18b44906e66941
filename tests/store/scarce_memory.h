// A machine that has as little memory left as a test says, beneath a whole store.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>

#include <cstdint>

namespace ebbtide::test {

/// While it lives, pools of host memory find so much left of the machine's, at most. A program that uses it is linked with
/// `--wrap` (tests/store/CMakeLists.txt), so that the store needs no way in for tests.
/// Threads: any; one such object at a time.
class ScarceMemory {
 public:
  explicit ScarceMemory(Bytes left);
  ~ScarceMemory();
  ScarceMemory(const ScarceMemory&) = delete;
  ScarceMemory& operator=(const ScarceMemory&) = delete;

  void set_left(Bytes left);
  /// How often what is left was asked for.
  int64_t asked() const;
};

}  // namespace ebbtide::test
