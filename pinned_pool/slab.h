// One mapping of host memory, made ready for transfers before anybody sees it.
#pragma once

#include <ebbtide/pinned_pool/host_registrar.h>
#include <ebbtide/pinned_pool/numa_node.h>
#include <ebbtide/pinned_pool/pins.h>
#include <ebbtide/pinned_pool/prefault.h>
#include <ebbtide/pinned_pool/result.h>
#include <ebbtide/pinned_pool/slab_watcher.h>
#include <ebbtide/pinned_pool/topology.h>

#include <atomic>
#include <cstddef>
#include <string>

namespace ebbtide::pinned_pool {

/// Memory that nothing has touched, aligned to a huge page. `bytes`: a multiple of that. Null, and errno: there is none.
std::byte* map_aligned(size_t bytes) noexcept;

/// Mapped at a multiple of 2 MiB, bound to its node, backed by huge pages where the kernel has them, every page
/// present, pinned if a registrar is given.
///
/// Lifetime: unpins and unmaps when destroyed. Neither may happen in a forked child (the child may have other memory
/// there): whoever owns slabs sees to it. Threads:  make() on any; then read-only.
class Slab {
 public:
  struct Request {
    size_t bytes = 0;                              ///< a multiple of 2 MiB
    const Topology* topology = nullptr;            ///< none: not bound
    NumaNode node = kAnyNode;                      ///< kAnyNode: not bound
    HostRegistrar* registrar = nullptr;            ///< outlives the slab; none: pageable
    SlabWatcher* watcher = nullptr;                ///< outlives the slab; none: nobody is told
    bool survives_fork = true;                     ///< false: a forked child does not inherit it
    const std::atomic<bool>* cancelled = nullptr;  ///< looked at between pieces of prefaulting, which may take a second
  };
  /// Errors: kOverCapacity (no address space or no memory), kCancelled. A refused bind, huge page or pin is no error:
  /// see below.
  static Result<Slab> make(const Request& request);

  Slab(Slab&& other) noexcept;
  Slab& operator=(Slab&&) = delete;
  ~Slab();

  std::byte* data() const noexcept { return data_; }
  size_t bytes() const noexcept { return bytes_; }
  bool huge_pages() const noexcept { return huge_pages_; }  ///< asked for, and the kernel's setting allows them
  const Pins& pins() const noexcept { return pins_; }
  const std::string& pageable_because() const noexcept { return pageable_because_; }  ///< empty when all is pinned
  const std::string& unbound_because() const noexcept {
    return unbound_because_;
  }  ///< empty when bound, or not asked to be
  const std::string& inherited_because() const noexcept {
    return inherited_because_;
  }  ///< empty when a forked child does not inherit it, or may

 private:
  Slab(std::byte* data, size_t bytes) noexcept : data_(data), bytes_(bytes) {}
  static Result<Slab> map(size_t bytes);

  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  Pins pins_;
  SlabWatcher* watcher_ = nullptr;
  bool huge_pages_ = false;
  std::string pageable_because_;
  std::string unbound_because_;
  std::string inherited_because_;
};

}  // namespace ebbtide::pinned_pool
