// Which NUMA nodes this process may use, and which is near what.
#pragma once

#include <ebbtide/pinned_pool/numa_node.h>
#include <ebbtide/pinned_pool/result.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

struct hwloc_topology;
struct hwloc_obj;

namespace ebbtide {

/// The machine as hwloc sees it. "Node" below means a NUMA node with ordinary memory (not HBM, a GPU or CXL) and CPUs
/// that the process's cpuset allows. Lifetime: a snapshot; nodes and devices that come later are not seen. Threads:
/// any.
class Topology {
 public:
  /// This machine. Takes some milliseconds. Errors: kUnsupported.
  static Result<Topology> load();
  /// A machine described by hwloc's XML, to look at: memory cannot be bound on it. Errors: kInvalid.
  static Result<Topology> from_xml(const std::string& path);

  /// Ascending; at least one, unless the machine hides its memory from hwloc.
  const std::vector<NumaNode>& nodes() const noexcept { return nodes_; }

  /// Whether the machine has memory beyond nodes(): on nodes that are not allowed to us, or of another kind.
  bool has_other_memory() const noexcept { return other_memory_; }

  /// The node nearest to a PCI device ("0000:3b:00.0", as cudaDeviceGetPCIBusId writes it); none if the device is
  /// unknown or its node not ours.
  std::optional<NumaNode> node_of_pci(const std::string& bus_id) const;

  /// The node nearest to the core on which the caller runs; else the first.
  NumaNode node_of_this_thread() const noexcept;

  /// Keeps the calling thread on the cores of `node` that its affinity already allows. Errors: kUnsupported, kInvalid
  /// (none of them is).
  Status bind_this_thread(NumaNode node) const;

  /// Pages of [data, data + bytes) come from `node` only. REQUIRES: none of them is present yet.
  /// Errors: kUnsupported (forbidden in this container, or not this machine), kInvalid (no such node).
  Status bind_memory(void* data, size_t bytes, NumaNode node) const;

 private:
  struct Free {
    void operator()(hwloc_topology* topology) const noexcept;
  };
  using Handle = std::unique_ptr<hwloc_topology, Free>;
  explicit Topology(Handle handle);
  hwloc_obj* find(NumaNode node) const noexcept;

  Handle handle_;
  std::vector<NumaNode> nodes_;
  bool other_memory_ = false;
  std::vector<NumaNode> node_of_cpu_;
};

}  // namespace ebbtide
