// Expected failures as values: what may go wrong on a healthy machine (a full disk, a refused registration) is
// returned, not thrown.
#pragma once

#include <cassert>
#include <string>
#include <utility>
#include <variant>

namespace ebbtide {

enum class FailureCode {
  kOverCapacity,  ///< a budget, a cgroup or the machine has no room (memory)
  kNoSpace,       ///< the disk or the spill budget has no room
  kIo,            ///< the disk or the kernel failed the transfer
  kCorrupt,       ///< bytes came back that are not the bytes that left
  kUnsupported,   ///< this machine, kernel or container does not offer it
  kInvalid,       ///< the caller asked for something that makes no sense
  kCancelled,     ///< withdrawn by the caller before it began
  kDeviceLost,    ///< the device works no more, and what lay in its memory is gone
};

/// Why something did not happen. `message` is a whole sentence for people: it names the thing, the numbers and, where
/// there is one, the way out.
struct Failure {
  FailureCode code;
  int system_errno = 0;  ///< 0 where no system call failed
  std::string message;
};

/// A `T`, or why there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : content_(std::move(value)) {}  // NOLINT(google-explicit-constructor): reads as a return value
  Result(Failure failure) : content_(std::move(failure)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const noexcept { return content_.index() == 0; }
  explicit operator bool() const noexcept { return ok(); }

  /// REQUIRES: ok().
  T& value() & { return assert(ok()), *std::get_if<0>(&content_); }
  const T& value() const& { return assert(ok()), *std::get_if<0>(&content_); }
  T value() && { return assert(ok()), std::move(*std::get_if<0>(&content_)); }

  /// REQUIRES: !ok().
  Failure& failure() & { return assert(!ok()), *std::get_if<1>(&content_); }
  const Failure& failure() const& { return assert(!ok()), *std::get_if<1>(&content_); }
  Failure failure() && { return assert(!ok()), std::move(*std::get_if<1>(&content_)); }

 private:
  std::variant<T, Failure> content_;
};

/// Success without a value, or why not.
using Status = Result<std::monostate>;
inline Status success() {
  return Status(std::monostate{});
}

}  // namespace ebbtide
