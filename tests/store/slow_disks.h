// Spill folders that are as slow as a test says, beneath a whole store.
#pragma once

#include <cstddef>

namespace ebbtide::test {

/// While it lives, the spill tiers that are opened have slow disks: real files, whose transfers end as if the disk moved
/// so many bytes a second. A program that uses it is linked with `--wrap` (tests/store/CMakeLists.txt), so that the
/// store needs no way in for tests.
/// Threads: any; one such object at a time.
class SlowDisks {
 public:
  explicit SlowDisks(double bytes_per_second);
  ~SlowDisks();
  SlowDisks(const SlowDisks&) = delete;
  SlowDisks& operator=(const SlowDisks&) = delete;

  /// Of all disks, those to come included. Transfers that have begun go on as they did.
  void set_speed(double bytes_per_second);
  /// Of the n-th folder opened since this began.
  void set_speed(size_t disk, double bytes_per_second);
  size_t count() const;
};

}  // namespace ebbtide::test
