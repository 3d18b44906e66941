// A disk of a test's own, which fails when it is told to: a file system in a loop device.
#pragma once

#include <ebbtide/pinned_pool/result.h>
#include <sys/types.h>

#include <cstddef>
#include <memory>
#include <string>

namespace ebbtide::nvme {

/// Lifetime: unmounted and removed on destruction; by the system when the test's process ends without.
class LoopDisk {
 public:
  /// An image in `image_folder`, sparse, mounted over a new folder.
  /// Errors: kUnsupported, with what this process may not do here.
  static Result<std::unique_ptr<LoopDisk>> make(size_t bytes, const std::string& image_folder,
                                                const std::string& file_system = "ext4");
  LoopDisk(const LoopDisk&) = delete;
  LoopDisk& operator=(const LoopDisk&) = delete;
  ~LoopDisk();

  /// Where it is mounted.
  const std::string& path() const noexcept { return path_; }
  /// "7:3", as control groups name it.
  const std::string& device_number() const noexcept { return device_number_; }

  /// From now on every transfer fails with EIO, as of a device that is gone. 0 or an errno.
  int shut_down();
  /// Whoever takes room on it afterwards finds none. False: it could not be filled.
  bool fill();
  void free_what_fill_took();

 private:
  LoopDisk() = default;
  std::string image_, path_, device_number_;
  int loop_ = -1;
  bool mounted_ = false;
};

/// Writes to the file system of `path` hang as long as this lives (or until the test's process ends).
class Freeze {
 public:
  explicit Freeze(const std::string& path);
  Freeze(const Freeze&) = delete;
  Freeze& operator=(const Freeze&) = delete;
  ~Freeze();
  /// 0, or why it is not frozen.
  int error() const noexcept { return error_; }

 private:
  pid_t guard_ = -1;  // thaws when its end of the pipe is closed, by whomever
  int pipe_ = -1;
  int error_ = 0;
};

}  // namespace ebbtide::nvme
