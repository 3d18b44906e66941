// Making a mapping's pages present, before anybody waits for them.
#pragma once

#include <ebbtide/pinned_pool/result.h>

#include <atomic>
#include <chrono>
#include <cstddef>

namespace ebbtide::pinned_pool {

inline constexpr size_t kHugePage = size_t{2} << 20;

/// Prefaulting goes in pieces of this much, so that it can be timed, shared among threads and cancelled.
inline constexpr size_t kPrefaultPiece = size_t{64} << 20;

struct Prefault {
  std::byte* data = nullptr;
  size_t bytes = 0;
  const std::atomic<bool>* cancelled = nullptr;  ///< looked at between pieces
  unsigned threads = 0;                          ///< the caller's included; 0: as many as help here
  /// A piece takes 10 ms with huge pages and 25 ms with small ones, and 250 ms where a virtual machine must ask its host
  /// for memory. On a fragmented host the kernel compacts memory for every huge page, and takes seconds: what is left
  /// after a piece that took longer than this gets small pages. They cost as long as the memory is used: io_uring takes
  /// registered memory by the page if not all of it is huge, for twice the processor's time and half a fast disk's speed.
  std::chrono::nanoseconds crawling = std::chrono::seconds(1);
};

/// Every page is there afterwards, where possible as huge pages. What the pages hold is not changed. True: huge pages
/// were asked for throughout, and the kernel's setting allows them.
/// REQUIRES: the mapping is bound to its node already, since binding moves no pages.
/// Errors: kOverCapacity (no pages), kCancelled.
Result<bool> prefault(const Prefault& wanted);

}  // namespace ebbtide::pinned_pool
