// How a caller's thread waits for a transfer.
#pragma once

#include <ebbtide/pinned_pool/export.h>

namespace ebbtide {

/// Lets the embedding program give up what it must not hold while one of its threads waits (Python: the GIL), and break
/// a wait off (Ctrl-C).
/// Threads: called on the waiting thread, never under a lock of the store.
class EBBTIDE_API Waiter {
 public:
  virtual ~Waiter() = default;
  /// Before the wait. The result is handed to `resume`.
  virtual void* release() = 0;
  /// Every tenth of a second of the wait. Throws to break it off; `resume` is called then too.
  virtual void check() = 0;
  virtual void resume(void* released) noexcept = 0;
};

}  // namespace ebbtide
