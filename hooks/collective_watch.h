// Whether a thread asked for a collective.
#pragma once

#include <cstdint>

namespace ebbtide {

/// While it lives, collectives of torch.distributed (c10d) that this thread asks for are seen, through torch's record
/// functions: those of process groups and of their backends, of every kind that names itself to profilers (Gloo, NCCL).
/// So are those of backwards that it runs, on whatever threads; rather one too many, of another thread's, than one missed.
///
/// Threads: made and destroyed on one thread, last made first.
class CollectiveWatch {
 public:
  CollectiveWatch();
  ~CollectiveWatch();
  CollectiveWatch(const CollectiveWatch&) = delete;
  CollectiveWatch& operator=(const CollectiveWatch&) = delete;

  bool seen() const noexcept;

  /// Whether this process may run any: WORLD_SIZE, as torchrun sets it, is more than 1, or one was seen before.
  static bool expected() noexcept;

 private:
  const uint64_t before_;
};

}  // namespace ebbtide
