// Who wants to know of slabs as they come and go.
#pragma once

#include <cstddef>

namespace ebbtide {

/// Told of memory that transfers will use again and again: io_uring, for one, then need not look up its pages each time.
/// Threads: called from any, under no lock that a Block's destructor takes or an acquire() that need not grow.
class SlabWatcher {
 public:
  virtual ~SlabWatcher() = default;
  /// Its pages are present; nothing lies in it yet.
  virtual void came(std::byte* data, size_t bytes) noexcept = 0;
  /// Nothing lies in it any more. It is unmapped once this has returned.
  virtual void goes(std::byte* data, size_t bytes) noexcept = 0;
};

}  // namespace ebbtide
