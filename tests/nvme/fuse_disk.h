// A file system of a test's own, in which each read and write ends as the test says: FUSE, without its library.
#pragma once

#include <ebbtide/pinned_pool/result.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

struct fuse_in_header;

namespace ebbtide::nvme {

/// Knows files in one folder, O_DIRECT, no O_TMPFILE, and as much room as there is memory.
///
/// Lifetime: on destruction what is under way fails, as where a network file system goes away.
class FuseDisk {
 public:
  /// How many of the bytes are moved, or -errno. Threads: the disk's own, one at a time.
  using Answer = std::function<int(bool write, uint64_t offset, uint32_t bytes)>;

  /// Errors: kUnsupported, with what this process may not do here.
  static Result<std::unique_ptr<FuseDisk>> make(const std::string& in_folder);
  FuseDisk(const FuseDisk&) = delete;
  FuseDisk& operator=(const FuseDisk&) = delete;
  ~FuseDisk();

  const std::string& path() const noexcept { return path_; }
  /// From now on. Empty: all is moved.
  void answer_with(Answer answer);
  /// From now on no file may grow, and this is the errno. 0: they may again.
  void refuse_growth(int error);
  /// From now on one bit of each read is not what was written.
  void flip_bits(bool flip);
  /// Of files that have a name or are open.
  size_t named_files() const;

 private:
  FuseDisk() = default;
  void serve();
  void handle(const fuse_in_header& header, const std::byte* body);
  void reply(uint64_t unique, int error, const void* data = nullptr, size_t bytes = 0);

  std::string path_;
  int device_ = -1, end_ = -1;
  bool mounted_ = false;
  mutable std::mutex mutex_;  // guards what follows
  Answer answer_;
  int growth_error_ = 0;
  bool flips_ = false;
  std::map<std::string, uint64_t> names_;
  std::map<uint64_t, std::vector<std::byte>> files_;
  uint64_t last_node_ = 1;  // the folder's
  std::thread server_;
};

}  // namespace ebbtide::nvme
