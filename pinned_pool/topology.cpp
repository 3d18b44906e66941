#include <ebbtide/pinned_pool/topology.h>

#include <hwloc.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace ebbtide {
namespace {

struct FreeBitmap {
  void operator()(hwloc_bitmap_s* bitmap) const noexcept { hwloc_bitmap_free(bitmap); }
};
using Bitmap = std::unique_ptr<hwloc_bitmap_s, FreeBitmap>;

Failure hwloc_failure(FailureCode code, const std::string& what) {
  const int error = errno;
  return Failure{code, error, what + ": " + std::strerror(error)};
}

/// HBM, CXL-attached "SPM" and GPU memory are nodes with a subtype of their own; the main memory has none or "DRAM".
bool is_dram(const hwloc_obj& node) {
  return node.subtype == nullptr || node.subtype[0] == '\0' || std::strcmp(node.subtype, "DRAM") == 0;
}

/// The nodes of ordinary memory, in the order of their numbers.
std::vector<hwloc_obj_t> main_memory(hwloc_topology_t topology) {
  bool some_memory = false;
  std::vector<hwloc_obj_t> found;
  for (hwloc_obj_t node = nullptr;
       (node = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, node)) != nullptr;) {
    if (!is_dram(*node)) continue;
    found.push_back(node);
    some_memory = some_memory || node->attr->numanode.local_memory != 0;
  }
  // A node without memory cannot be bound to; where hwloc knows no figures at all (some containers), take them all.
  if (some_memory) std::erase_if(found, [](hwloc_obj_t node) { return node->attr->numanode.local_memory == 0; });
  std::sort(found.begin(), found.end(), [](hwloc_obj_t a, hwloc_obj_t b) { return a->os_index < b->os_index; });
  return found;
}

/// Older releases of hwloc name no kinds of memory. But what is not main memory (HBM, memory behind CXL, a GPU's) has no
/// CPUs: hwloc lists it with those that it is near, and Linux numbers it after their own node.
std::vector<hwloc_obj_t> with_cpus_of_their_own(const std::vector<hwloc_obj_t>& nodes) {
  const Bitmap taken(hwloc_bitmap_alloc());
  if (!taken) return nodes;
  std::vector<hwloc_obj_t> found;
  for (const hwloc_obj_t node : nodes) {
    // Those that are offline or not ours included: a node is no other kind for that.
    const hwloc_const_cpuset_t cpus = node->complete_cpuset;
    if (hwloc_bitmap_isincluded(cpus, taken.get())) continue;
    found.push_back(node);
    if (hwloc_bitmap_or(taken.get(), taken.get(), cpus) != 0) return nodes;
  }
  return found.empty() ? nodes : found;
}

/// A topology that is set up but not loaded. PCI devices are wanted: they say which node a GPU is near. hwloc's Linux
/// part reads them from sysfs; its "pci" part goes through libpciaccess, which leaks at every load and reads the
/// devices' configuration space. Its parts for displays and compute libraries look for servers and load drivers; all
/// that they could add is names.
hwloc_topology_t prepare() {
  hwloc_topology_t topology = nullptr;
  if (hwloc_topology_init(&topology) != 0) return nullptr;
  if (hwloc_topology_set_io_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_IMPORTANT) != 0) {
    hwloc_topology_destroy(topology);
    return nullptr;
  }
  // Refused where there is no such part: distributions ship it as a plugin, in a package of its own.
  for (const char* part : {"pci", "gl", "opencl", "cuda", "nvml", "rsmi", "levelzero"})
    (void)hwloc_topology_set_components(topology, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, part);
  return topology;
}

bool on_this_system(hwloc_topology_t topology) {
  // Elsewhere hwloc's bind calls return 0 and do nothing.
  return hwloc_topology_is_thissystem(topology) != 0;
}

}  // namespace

void Topology::Free::operator()(hwloc_topology* topology) const noexcept {
  hwloc_topology_destroy(topology);
}

Result<Topology> Topology::load() {
  Handle handle(prepare());
  if (!handle || hwloc_topology_load(handle.get()) != 0) {
    return hwloc_failure(FailureCode::kUnsupported, "hwloc cannot read this machine's topology");
  }
  return Topology(std::move(handle));
}

Result<Topology> Topology::from_xml(const std::string& path) {
  Handle handle(prepare());
  if (!handle || hwloc_topology_set_xml(handle.get(), path.c_str()) != 0 || hwloc_topology_load(handle.get()) != 0) {
    return hwloc_failure(FailureCode::kInvalid, "hwloc cannot read the topology in " + path);
  }
  return Topology(std::move(handle));
}

Topology::Topology(Handle handle) : handle_(std::move(handle)) {
  hwloc_topology_t topology = handle_.get();
  const hwloc_const_nodeset_t allowed = hwloc_topology_get_allowed_nodeset(topology);
  for (const hwloc_obj_t node : with_cpus_of_their_own(main_memory(topology))) {
    if (hwloc_bitmap_isset(allowed, node->os_index)) nodes_.push_back(NumaNode{static_cast<int>(node->os_index)});
  }
  const int all = hwloc_bitmap_weight(hwloc_topology_get_complete_nodeset(topology));
  other_memory_ = all > static_cast<int>(nodes_.size());

  for (hwloc_obj_t cpu = nullptr; (cpu = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_PU, cpu)) != nullptr;) {
    const auto near = std::find_if(nodes_.begin(), nodes_.end(), [cpu](NumaNode node) {
      return hwloc_bitmap_isset(cpu->nodeset, static_cast<unsigned>(node)) != 0;
    });
    if (near == nodes_.end()) continue;
    if (node_of_cpu_.size() <= cpu->os_index) node_of_cpu_.resize(cpu->os_index + 1, kAnyNode);
    node_of_cpu_[cpu->os_index] = *near;
  }
}

hwloc_obj* Topology::find(NumaNode node) const noexcept {
  if (std::find(nodes_.begin(), nodes_.end(), node) == nodes_.end()) return nullptr;
  return hwloc_get_numanode_obj_by_os_index(handle_.get(), static_cast<unsigned>(node));
}

std::optional<NumaNode> Topology::node_of_pci(const std::string& bus_id) const {
  const hwloc_obj_t device = hwloc_get_pcidev_by_busidstring(handle_.get(), bus_id.c_str());
  if (device == nullptr) return std::nullopt;
  const hwloc_obj_t home = hwloc_get_non_io_ancestor_obj(handle_.get(), device);
  for (const NumaNode node : nodes_) {
    if (hwloc_bitmap_isset(home->nodeset, static_cast<unsigned>(node))) return node;
  }
  return std::nullopt;
}

NumaNode Topology::node_of_this_thread() const noexcept {
  const int cpu = ::sched_getcpu();
  if (cpu >= 0 && static_cast<size_t>(cpu) < node_of_cpu_.size() && node_of_cpu_[cpu] != kAnyNode)
    return node_of_cpu_[cpu];
  return nodes_.empty() ? kAnyNode : nodes_.front();
}

Status Topology::bind_this_thread(NumaNode node) const {
  const hwloc_obj_t found = find(node);
  const std::string what = "binding a thread to NUMA node " + std::to_string(static_cast<int>(node));
  if (found == nullptr) return Failure{FailureCode::kInvalid, 0, what + ": there is no such node here"};
  if (!on_this_system(handle_.get()))
    return Failure{FailureCode::kUnsupported, 0, what + ": the topology is another machine's"};
  const Bitmap cpus(hwloc_bitmap_alloc());
  if (!cpus || hwloc_get_cpubind(handle_.get(), cpus.get(), HWLOC_CPUBIND_THREAD) != 0 ||
      hwloc_bitmap_and(cpus.get(), cpus.get(), found->cpuset) != 0) {
    return hwloc_failure(FailureCode::kUnsupported, what);
  }
  if (hwloc_bitmap_iszero(cpus.get()))
    return Failure{FailureCode::kInvalid, 0, what + ": the thread's affinity allows none of its cores"};
  if (hwloc_set_cpubind(handle_.get(), cpus.get(), HWLOC_CPUBIND_THREAD) != 0)
    return hwloc_failure(FailureCode::kUnsupported, what);
  return success();
}

Status Topology::bind_memory(void* data, size_t bytes, NumaNode node) const {
  const hwloc_obj_t found = find(node);
  const std::string what = "binding memory to NUMA node " + std::to_string(static_cast<int>(node));
  if (found == nullptr) return Failure{FailureCode::kInvalid, 0, what + ": there is no such node here"};
  if (!on_this_system(handle_.get()))
    return Failure{FailureCode::kUnsupported, 0, what + ": the topology is another machine's"};
  if (hwloc_set_area_membind(handle_.get(), data, bytes, found->nodeset, HWLOC_MEMBIND_BIND,
                             HWLOC_MEMBIND_BYNODESET | HWLOC_MEMBIND_STRICT) != 0) {
    return hwloc_failure(FailureCode::kUnsupported, what);
  }
  return success();
}

}  // namespace ebbtide
