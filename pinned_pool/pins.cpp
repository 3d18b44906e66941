#include <ebbtide/pinned_pool/pins.h>

#include <ebbtide/pinned_pool/prefault.h>

#include <algorithm>
#include <limits>
#include <utility>

namespace ebbtide::pinned_pool {
namespace {

size_t half(size_t bytes) {
  return (bytes / 2 + kHugePage - 1) / kHugePage * kHugePage;
}

}  // namespace

Pins Pins::make(HostRegistrar& registrar, std::byte* data, size_t bytes) {
  Pins pins;
  pins.registrar_ = &registrar;
  pins.data_ = data;
  // A size that was refused is refused further on too.
  for (size_t piece = bytes; pins.bytes() < bytes;) {
    const size_t start = pins.bytes();
    const size_t length = std::min(piece, bytes - start);
    if (Status status = registrar.pin(data + start, length); status) {
      pins.ends_.push_back(start + length);
    } else if (length > kLeastPin) {
      piece = half(length);
    } else {
      pins.refused_because_ = std::move(status).failure().message;
      break;
    }
  }
  return pins;
}

size_t Pins::to_seam(size_t offset) const noexcept {
  const auto end = std::upper_bound(ends_.begin(), ends_.end(), offset);
  return end == ends_.end() ? std::numeric_limits<size_t>::max() : *end - offset;
}

void Pins::unpin() noexcept {
  size_t start = 0;
  for (const size_t end : ends_) {
    registrar_->unpin(data_ + start, end - start);
    start = end;
  }
  ends_.clear();
}

Pins::Pins(Pins&& other) noexcept
    : registrar_(other.registrar_),
      data_(other.data_),
      ends_(std::exchange(other.ends_, {})),
      refused_because_(std::move(other.refused_because_)) {}

Pins& Pins::operator=(Pins&& other) noexcept {
  if (this == &other) return *this;
  unpin();
  registrar_ = other.registrar_;
  data_ = other.data_;
  ends_ = std::exchange(other.ends_, {});
  refused_because_ = std::move(other.refused_because_);
  return *this;
}

Pins::~Pins() {
  unpin();
}

}  // namespace ebbtide::pinned_pool
