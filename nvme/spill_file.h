// One file without a name, in one folder, for direct I/O.
#pragma once

#include <ebbtide/nvme/spill_tier.h>

#include <sys/types.h>

#include <cstdint>
#include <string>

namespace ebbtide::nvme {

/// A file that no other process can open by name, and whose bytes the system takes back when the process ends, however
/// it ends: O_TMPFILE, or created and unlinked at once where the file system has no such thing. Readable by its owner
/// only.
///
/// Threads: one at a time for grow(); fd() from any. Lifetime: closes on destruction (which frees the blocks, also where
/// a forked child holds the file open, and may take milliseconds a GiB). REQUIRES then: no transfer in flight.
class SpillFile {
 public:
  /// Errors: kInvalid (not a folder), kIo (cannot create a file there), with folder and errno.
  static Result<SpillFile> open(const std::string& folder);

  SpillFile(SpillFile&& other) noexcept;
  SpillFile& operator=(SpillFile&&) = delete;
  ~SpillFile();

  int fd() const noexcept { return fd_; }
  const std::string& folder() const noexcept { return folder_; }
  uint64_t size() const noexcept { return size_; }
  IoAlignment alignment() const noexcept { return alignment_; }
  bool ram() const noexcept { return ram_; }
  /// Why io_uring must not be used here; empty: it may.
  const std::string& unfit_for_io_uring() const noexcept { return unfit_for_io_uring_; }
  /// "/mnt/nvme0 (ext4, direct I/O, memory 512, length 512)", or why not direct.
  const std::string& description() const noexcept { return description_; }

  /// Preallocates up to `bytes`, so that later writes need no new blocks. Errors: kNoSpace, kIo; the file is then as
  /// long as before.
  Status grow(uint64_t bytes);

 private:
  SpillFile(int fd, std::string folder) noexcept;
  /// What direct I/O wants here, or buffered I/O where there is none.
  void find_alignment(bool direct);

  int fd_;
  pid_t owner_;
  std::string folder_;
  uint64_t size_ = 0;
  IoAlignment alignment_;
  bool ram_ = false;
  std::string unfit_for_io_uring_;
  std::string description_;
};

/// The smallest alignment worth a trial where the kernel does not say what direct I/O wants. Some file systems (btrfs, f2fs)
/// take what is aligned to less than their blocks and move it through the page cache, several times slower, without a
/// word; a trial cannot see that. `file_system`: as statfs says it. `block`: bytes, as stat says it.
size_t least_alignment(unsigned long file_system, size_t block) noexcept;

/// "… failed in /mnt/nvme0: No space left on device (28)."
Failure system_failure(FailureCode code, int error, const std::string& what);

}  // namespace ebbtide::nvme
