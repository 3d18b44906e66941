// What a planner knows of the machine: how fast saved tensors move, and how many may lie where.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/transfer/bandwidth.h>

#include <limits>
#include <optional>

namespace ebbtide {

/// Bytes a second in one direction.
struct LaneSpeed {
  double alone = 0;
  double duplex = 0;  ///< while the other direction is busy too
};

/// Between a device and host memory. A transfer takes `latency_s` and its bytes at that speed.
struct LinkModel {
  LaneSpeed out, in;
  double latency_s = 0;

  /// From what was measured. None before both directions were.
  EBBTIDE_API static std::optional<LinkModel> of(const LinkBandwidth& measured) noexcept;
};

/// Where the same cores compute and serve a disk, what a byte takes from the computation: interrupts, checksums, and what
/// a hypervisor copies. Two cores with a virtual disk and all computing: 0.9 CPU-seconds a GiB by direct I/O alone.
inline constexpr double kComputeSecondsPerByte = 0.45 / (1 << 30);

/// Reads and writes share it: while both have work, each goes at half its speed.
struct DiskModel {
  double write = 0;  ///< bytes a second
  double read = 0;
  double latency_s = 0;
  /// What a byte written or read takes from the computation, where the same cores do both: for CPU tensors.
  double compute_s_per_byte = 0;
};

/// Without a link the device is host memory, and what leaves goes to the disk.
struct Machine {
  std::optional<LinkModel> link;
  std::optional<DiskModel> disk;
};

/// How many bytes of one pass may lie where.
struct Budgets {
  Bytes device;
  Bytes host{std::numeric_limits<int64_t>::max()};  ///< without meaning where there is no link
  Bytes spill{std::numeric_limits<int64_t>::max()};
};

/// What holds on one device.
struct Conditions {
  Machine machine;
  Budgets budgets;
};

}  // namespace ebbtide
