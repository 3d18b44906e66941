// Byte counts as a type of their own, so that a count is never mistaken for an offset, an index or an id.
#pragma once

#include <ebbtide/pinned_pool/export.h>

#include <compare>
#include <cstdint>
#include <string>

namespace ebbtide {

/// A number of bytes. Differences may be negative, so it is signed; one exbibyte and more is out of range.
class Bytes {
 public:
  constexpr Bytes() noexcept = default;
  constexpr explicit Bytes(int64_t count) noexcept : count_(count) {}

  constexpr int64_t count() const noexcept { return count_; }
  constexpr auto operator<=>(const Bytes&) const noexcept = default;

  constexpr Bytes& operator+=(Bytes other) noexcept {
    count_ += other.count_;
    return *this;
  }
  constexpr Bytes& operator-=(Bytes other) noexcept {
    count_ -= other.count_;
    return *this;
  }
  friend constexpr Bytes operator+(Bytes a, Bytes b) noexcept { return a += b; }
  friend constexpr Bytes operator-(Bytes a, Bytes b) noexcept { return a -= b; }
  friend constexpr Bytes operator*(Bytes a, int64_t n) noexcept { return Bytes(a.count_ * n); }
  friend constexpr Bytes operator/(Bytes a, int64_t n) noexcept { return Bytes(a.count_ / n); }

 private:
  int64_t count_ = 0;
};

constexpr Bytes KiB(double n) noexcept {
  return Bytes(static_cast<int64_t>(n * 1024.0));
}
constexpr Bytes MiB(double n) noexcept {
  return Bytes(static_cast<int64_t>(n * 1024.0 * 1024.0));
}
constexpr Bytes GiB(double n) noexcept {
  return Bytes(static_cast<int64_t>(n * 1024.0 * 1024.0 * 1024.0));
}
constexpr Bytes TiB(double n) noexcept {
  return Bytes(static_cast<int64_t>(n * 1024.0 * 1024.0 * 1024.0 * 1024.0));
}

/// For people: "1.46 GiB", "64 KiB", "17 B".
EBBTIDE_API std::string to_string(Bytes bytes);

}  // namespace ebbtide
