// How much host memory may still be taken: what the machine has, and what each cgroup above this process allows.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/numa_node.h>

#include <string>
#include <vector>

namespace ebbtide::pinned_pool {

/// The tightest bound on new memory.
struct Room {
  Bytes left;         ///< after the reserve; never negative
  Bytes reserve;      ///< held back for everybody else under the same bound
  std::string where;  ///< what bounds it: a cgroup's or node's folder, or "/proc/meminfo's MemAvailable"
  Bytes limit;        ///< that left is of; the machine's or node's memory
};

/// Reads bounds from /proc and /sys each time it is asked, since other processes take memory too.
/// Threads: any. Errors: a bound that cannot be read does not bound (a container may hide any of these files).
class Capacity {
 public:
  /// `root` is put before "/proc/..." and "/sys/...": tests have trees of their own. Messages name paths without it.
  explicit Capacity(std::string root = {}) : root_(std::move(root)) {}

  /// min over MemAvailable and, for this process's cgroup (v1 and v2) and each of its ancestors, limit - (usage -
  /// inactive_file), less a reserve of limit/32 between 16 MiB and 1 GiB. File cache that nobody uses is counted as
  /// free: the kernel drops it before it kills.
  Room room() const;
  /// All of these bounds, the machine's own first.
  std::vector<Room> bounds() const;

  /// The same for one NUMA node. Memory bound strictly to a full node gets the process killed while other nodes have
  /// room.
  Room room_on(NumaNode node) const;

 private:
  std::string root_;
};

}  // namespace ebbtide::pinned_pool
