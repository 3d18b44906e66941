// How fast a link is, before anything has crossed it.
#pragma once

#include <ebbtide/pinned_pool/result.h>
#include <ebbtide/transfer/bandwidth.h>
#include <ebbtide/transfer/clock.h>
#include <ebbtide/transfer/device.h>

#include <chrono>
#include <cstddef>

namespace ebbtide {

/// Memory to measure with: of each `bytes`, all four apart. The host memory is registered, or what is measured is the
/// copy through the driver's own buffers.
struct LinkScratch {
  std::byte* host_out = nullptr;
  std::byte* host_in = nullptr;
  std::byte* device_out = nullptr;
  std::byte* device_in = nullptr;
  size_t bytes = 0;
};

/// Copies transfers of 64 KiB, 1 MiB and 16 MiB, as far as the scratch holds them, one after the other: each way alone
/// and both at once. Lanes start from the result (CopyLaneOptions::bandwidth).
///
/// REQUIRES: an idle link; nobody else uses the scratch until this returns, nor after a failure, when copies may still
///           run.
/// Stream:   the device's copy streams, after all that is enqueued there.
/// Threads:  any. Waits for the copies, by asking: not on a path that trains.
/// Time:     about `at_most`: sizes that would take longer are left out, and a link that does not finish one copy in
///           ten times as long is kUnsupported. By events where the device times them, else by `clock`.
/// Errors:   the device's.
Result<LinkBandwidth> measure_link(Device& device, const Clock& clock, const LinkScratch& scratch,
                                   std::chrono::nanoseconds at_most = std::chrono::milliseconds(30));

}  // namespace ebbtide
