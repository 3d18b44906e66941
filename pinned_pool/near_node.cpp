#include <ebbtide/pinned_pool/near_node.h>

namespace ebbtide {

NearNode::NearNode(const Topology* topology, NumaNode node) noexcept {
  if (topology == nullptr || topology->nodes().size() < 2 || node == kAnyNode) return;
  cpu_set_t before;
  // Refused where the machine has more cores than the set has room for.
  if (::sched_getaffinity(0, sizeof before, &before) != 0) return;
  if (topology->bind_this_thread(node).ok()) before_ = before;
}

NearNode::~NearNode() {
  if (before_) (void)::sched_setaffinity(0, sizeof *before_, &*before_);
}

}  // namespace ebbtide
