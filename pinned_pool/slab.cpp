#include <ebbtide/pinned_pool/slab.h>

#include <ebbtide/pinned_pool/bytes.h>

#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <utility>

namespace ebbtide::pinned_pool {

std::byte* map_aligned(size_t bytes) noexcept {
  // mmap aligns to pages only: map a huge page more and cut both ends off.
  void* raw = ::mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  auto* start = static_cast<std::byte*>(raw);
  const size_t head = (kHugePage - reinterpret_cast<uintptr_t>(start) % kHugePage) % kHugePage;
  // Cutting can only fail when the process is out of mappings; what is left over is untouched address space.
  if (head != 0) (void)::munmap(start, head);
  (void)::munmap(start + head + bytes, kHugePage - head);
  return start + head;
}

Result<Slab> Slab::map(size_t bytes) {
  std::byte* data = map_aligned(bytes);
  if (data == nullptr) {
    const int error = errno;
    return Failure{FailureCode::kOverCapacity, error,
                   "mmap of " + to_string(Bytes(static_cast<int64_t>(bytes))) + " failed: " + std::strerror(error)};
  }
  return Slab(data, bytes);
}

Result<Slab> Slab::make(const Request& request) {
  Result<Slab> mapped = map(request.bytes);
  if (!mapped) return mapped;
  Slab& slab = mapped.value();

  // Before the first page is there: binding does not move pages.
  if (request.topology != nullptr && request.node != kAnyNode) {
    if (Status bound = request.topology->bind_memory(slab.data_, slab.bytes_, request.node); !bound) {
      slab.unbound_because_ = std::move(bound).failure().message;
    }
  }
  // A DMA target must not become copy-on-write in a forked data loader: the device would go on writing to the child's
  // page.
  if (!request.survives_fork && ::madvise(slab.data_, slab.bytes_, MADV_DONTFORK) != 0)
    slab.inherited_because_ = std::string("madvise(MADV_DONTFORK): ") + std::strerror(errno);
  auto huge_pages = prefault({.data = slab.data_, .bytes = slab.bytes_, .cancelled = request.cancelled});
  if (!huge_pages) return std::move(huge_pages).failure();
  slab.huge_pages_ = huge_pages.value();

  if (request.registrar == nullptr) {
    slab.pageable_because_ = "no device asked for pinned memory";
  } else {
    slab.pins_ = Pins::make(*request.registrar, slab.data_, slab.bytes_);
    slab.pageable_because_ = slab.pins_.refused_because();
  }
  if (request.watcher != nullptr) {
    slab.watcher_ = request.watcher;
    slab.watcher_->came(slab.data_, slab.bytes_);
  }
  return mapped;
}

Slab::Slab(Slab&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(other.bytes_),
      pins_(std::move(other.pins_)),
      watcher_(other.watcher_),
      huge_pages_(other.huge_pages_),
      pageable_because_(std::move(other.pageable_because_)),
      unbound_because_(std::move(other.unbound_because_)),
      inherited_because_(std::move(other.inherited_because_)) {}

Slab::~Slab() {
  if (data_ == nullptr) return;
  if (watcher_ != nullptr) watcher_->goes(data_, bytes_);
  pins_ = Pins();
  if (::munmap(data_, bytes_) != 0) std::perror("ebbtide: munmap");
}

}  // namespace ebbtide::pinned_pool
