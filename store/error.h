// The errors that reach a user: broken promises, each with its class and code.
#pragma once

#include <ebbtide/pinned_pool/export.h>

#include <stdexcept>
#include <string>

namespace ebbtide {

enum class ErrorCode { kConfig, kOutOfBudget, kSpill, kCorrupt, kClosed, kDevice, kCheckpoint, kStopped };

/// What a call could not do. Thrown on the thread of the call that it concerns, also when the cause lay in the
/// background.
class EBBTIDE_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

/// A wrong option, or options that contradict one another; names the option, the value and what is accepted.
class EBBTIDE_API ConfigError : public Error {
 public:
  explicit ConfigError(const std::string& message) : Error(ErrorCode::kConfig, message) {}
};

/// No tier has room; names the budget to raise and by how much.
class EBBTIDE_API OutOfBudget : public Error {
 public:
  explicit OutOfBudget(const std::string& message) : Error(ErrorCode::kOutOfBudget, message) {}
};

/// The disk failed and no copy is left; names file, offset and errno.
class EBBTIDE_API SpillError : public Error {
 public:
  explicit SpillError(const std::string& message) : Error(ErrorCode::kSpill, message) {}
};

/// A device failed, and what it was to bring back cannot come; names the device and what failed.
class EBBTIDE_API DeviceError : public Error {
 public:
  explicit DeviceError(const std::string& message) : Error(ErrorCode::kDevice, message) {}
};

/// Bytes came back that are not the bytes that left.
class EBBTIDE_API CorruptTensor : public Error {
 public:
  explicit CorruptTensor(const std::string& message) : Error(ErrorCode::kCorrupt, message) {}
};

/// A region that runs again saves other tensors than it did the first time.
class EBBTIDE_API CheckpointError : public Error {
 public:
  explicit CheckpointError(const std::string& message) : Error(ErrorCode::kCheckpoint, message) {}
};

}  // namespace ebbtide
