// Threads that run near their memory.
#pragma once

#include <ebbtide/pinned_pool/numa_node.h>
#include <ebbtide/pinned_pool/topology.h>

#include <sched.h>

#include <optional>

namespace ebbtide {

/// While it lives, the calling thread keeps to those cores of `node` that its affinity allows; threads that it starts
/// meanwhile keep to them for good, as threads inherit. Does nothing without a topology, on a machine of one node, for
/// kAnyNode, and where the system refuses: a thread that runs far away is slower, no more.
/// Threads: made and destroyed on one.
class NearNode {
 public:
  NearNode(const Topology* topology, NumaNode node) noexcept;
  ~NearNode();
  NearNode(const NearNode&) = delete;
  NearNode& operator=(const NearNode&) = delete;

 private:
  std::optional<cpu_set_t> before_;
};

}  // namespace ebbtide
