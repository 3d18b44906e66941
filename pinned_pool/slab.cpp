#include <ebbtide/pinned_pool/slab.h>

#include <ebbtide/pinned_pool/bytes.h>

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <utility>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; older C libraries do not name it
#endif

namespace ebbtide::pinned_pool {
namespace {

/// Prefaulting goes in pieces, so that it can be timed and cancelled.
constexpr size_t kPiece = size_t{64} << 20;

/// A piece takes 10 ms with huge pages and 25 ms with small ones. On a fragmented host the kernel compacts memory for
/// every huge page, and takes seconds: small pages it is then.
constexpr std::chrono::milliseconds kCrawling{250};

bool kernel_gives_huge_pages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string setting;
  return std::getline(file, setting) && setting.find("[never]") == std::string::npos;
}

/// Makes every page present without changing what it holds. Errors: kOverCapacity.
Status populate(std::byte* data, size_t bytes) {
  while (::madvise(data, bytes, MADV_POPULATE_WRITE) != 0) {
    const int error = errno;
    if (error == EINTR || error == EAGAIN) continue;
    if (error == EINVAL || error == ENOSYS) {  // an older kernel, or a sandbox without it
      for (size_t offset = 0; offset < bytes; offset += 4096)
        *reinterpret_cast<volatile std::byte*>(data + offset) = std::byte{0};
      return success();
    }
    return Failure{FailureCode::kOverCapacity, error,
                   "the kernel has no pages for host memory: " + std::string(std::strerror(error))};
  }
  return success();
}

}  // namespace

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

Status Slab::prefault(const std::atomic<bool>* cancelled) {
  for (size_t offset = 0; offset < bytes_; offset += kPiece) {
    if (cancelled != nullptr && cancelled->load(std::memory_order_relaxed))
      return Failure{FailureCode::kCancelled, 0, "the pool is closing"};
    const auto start = std::chrono::steady_clock::now();
    if (Status status = populate(data_ + offset, std::min(kPiece, bytes_ - offset)); !status) return status;
    if (huge_pages_ && offset + kPiece < bytes_ && std::chrono::steady_clock::now() - start > kCrawling) {
      huge_pages_ = ::madvise(data_ + offset + kPiece, bytes_ - offset - kPiece, MADV_NOHUGEPAGE) != 0;
    }
  }
  return success();
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
  slab.huge_pages_ = ::madvise(slab.data_, slab.bytes_, MADV_HUGEPAGE) == 0 && kernel_gives_huge_pages();
  // A DMA target must not become copy-on-write in a forked data loader: the device would go on writing to the child's
  // page.
  if (!request.survives_fork && ::madvise(slab.data_, slab.bytes_, MADV_DONTFORK) != 0)
    std::perror("ebbtide: MADV_DONTFORK");
  if (Status status = slab.prefault(request.cancelled); !status) return std::move(status).failure();

  if (request.registrar == nullptr) {
    slab.pageable_because_ = "no device asked for pinned memory";
  } else if (Status pinned = request.registrar->pin(slab.data_, slab.bytes_); pinned) {
    slab.pinned_by_ = request.registrar;
  } else {
    slab.pageable_because_ = std::move(pinned).failure().message;
  }
  return mapped;
}

Slab::Slab(Slab&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(other.bytes_),
      pinned_by_(std::exchange(other.pinned_by_, nullptr)),
      huge_pages_(other.huge_pages_),
      pageable_because_(std::move(other.pageable_because_)),
      unbound_because_(std::move(other.unbound_because_)) {}

Slab::~Slab() {
  if (data_ == nullptr) return;
  if (pinned_by_ != nullptr) pinned_by_->unpin(data_, bytes_);
  if (::munmap(data_, bytes_) != 0) std::perror("ebbtide: munmap");
}

}  // namespace ebbtide::pinned_pool
