#include <ebbtide/nvme/spill_file.h>

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>

namespace ebbtide::nvme {
namespace {

// statx's answer about direct I/O came with Linux 6.1; older headers have neither the flag nor the fields, whose places
// in the structure are ABI.
constexpr unsigned kStatxDioAlign = 0x2000;
constexpr size_t kDioMemAlignAt = 0x98;
constexpr size_t kDioOffsetAlignAt = 0x9c;

/// What the kernel says: none if it does not know, zeros if it knows that direct I/O does not work on this file.
std::optional<IoAlignment> alignment_by_statx(int fd) {
  alignas(struct statx) std::array<unsigned char, 256> answer{};
  static_assert(sizeof(struct statx) == answer.size());
  auto* status = reinterpret_cast<struct statx*>(answer.data());
  if (::statx(fd, "", AT_EMPTY_PATH, kStatxDioAlign, status) != 0 || !(status->stx_mask & kStatxDioAlign)) return {};
  uint32_t memory = 0, length = 0;
  std::memcpy(&memory, answer.data() + kDioMemAlignAt, sizeof memory);
  std::memcpy(&length, answer.data() + kDioOffsetAlignAt, sizeof length);
  return IoAlignment{memory, length};
}

/// The smallest alignment with which a write gets through. Leaves the file empty.
std::optional<IoAlignment> alignment_by_trial(int fd) {
  constexpr size_t kLargest = 4096;
  const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(kLargest, 2 * kLargest), &std::free);
  if (!memory) return {};
  std::memset(memory.get(), 0, 2 * kLargest);
  std::optional<IoAlignment> found;
  for (size_t align : {size_t{512}, kLargest}) {
    // At `align` bytes into aligned memory the address is a multiple of `align` and of nothing larger.
    const ssize_t written = ::pwrite(fd, static_cast<char*>(memory.get()) + align, align, 0);
    if (written == static_cast<ssize_t>(align)) {
      found = IoAlignment{align, align};
      break;
    }
  }
  if (::ftruncate(fd, 0) != 0) return {};
  return found;
}

/// A descriptor, or -errno.
int open_unnamed(const std::string& folder, int flags) {
  // O_EXCL: nobody can give the file a name later.
  const int fd = ::open(folder.c_str(), O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC | flags, 0600);
  if (fd >= 0) return fd;
  // EISDIR and ENOENT are how kernels without O_TMPFILE say it; EINVAL may also mean that O_DIRECT is unknown, which
  // fcntl then says too.
  if (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT && errno != EINVAL) return -errno;
  std::string name = folder + "/.ebbtide-spill-XXXXXX";
  const int named = ::mkostemp(name.data(), O_CLOEXEC);
  if (named < 0) return -errno;
  if (::unlink(name.c_str()) != 0) {
    const int error = errno;
    ::close(named);
    return -error;
  }
  // Not by mkostemp: where O_DIRECT is unknown, that makes the name before the kernel refuses, and the file stays.
  if (flags != 0 && ::fcntl(named, F_SETFL, flags) != 0) {
    const int error = errno;
    ::close(named);
    return -error;
  }
  return named;
}

std::string file_system_name(int fd, bool& ram) {
  struct statfs status {};
  if (::fstatfs(fd, &status) != 0) return "unknown file system";
  const auto type = static_cast<unsigned long>(status.f_type);
  ram = type == TMPFS_MAGIC || type == RAMFS_MAGIC;
  switch (type) {
    case TMPFS_MAGIC:
      return "tmpfs";
    case RAMFS_MAGIC:
      return "ramfs";
    case EXT4_SUPER_MAGIC:
      return "ext4";
    case XFS_SUPER_MAGIC:
      return "xfs";
    case BTRFS_SUPER_MAGIC:
      return "btrfs";
    case F2FS_SUPER_MAGIC:
      return "f2fs";
    case OVERLAYFS_SUPER_MAGIC:
      return "overlay";
    case FUSE_SUPER_MAGIC:
      return "fuse";
    case NFS_SUPER_MAGIC:
      return "nfs";
    default:
      break;
  }
  std::array<char, 48> text{};
  std::snprintf(text.data(), text.size(), "file system 0x%lx", type);
  return text.data();
}

}  // namespace

Failure system_failure(FailureCode code, int error, const std::string& what) {
  return {code, error, what + ": " + std::generic_category().message(error) + " (" + std::to_string(error) + ")."};
}

Result<SpillFile> SpillFile::open(const std::string& folder) {
  struct stat status {};
  if (::stat(folder.c_str(), &status) != 0) {
    return system_failure(FailureCode::kInvalid, errno, "Cannot spill to " + folder);
  }
  if (!S_ISDIR(status.st_mode)) {
    return system_failure(FailureCode::kInvalid, ENOTDIR, "Cannot spill to " + folder);
  }
  bool direct = true;
  int fd = open_unnamed(folder, O_DIRECT);
  if (fd == -EINVAL) {  // no O_DIRECT on this file system
    direct = false;
    fd = open_unnamed(folder, 0);
  }
  if (fd < 0) return system_failure(FailureCode::kIo, -fd, "Cannot create a spill file in " + folder);
  SpillFile file(fd, folder);
  file.find_alignment(direct);
  return file;
}

void SpillFile::find_alignment(bool direct) {
  if (direct) {
    std::optional<IoAlignment> alignment = alignment_by_statx(fd_);
    if (!alignment) alignment = alignment_by_trial(fd_);
    direct = alignment && alignment->memory != 0 && alignment->length != 0;
    if (direct) alignment_ = *alignment;
  }
  if (!direct) {
    alignment_ = {1, 1};
    const int flags = ::fcntl(fd_, F_GETFL);
    if (flags >= 0 && (flags & O_DIRECT)) ::fcntl(fd_, F_SETFL, flags & ~O_DIRECT);
  }
  const std::string file_system = file_system_name(fd_, ram_);
  // The kernel finishes a short transfer itself, and where FUSE does direct I/O it does so at the wrong place: at the
  // offset of the beginning (seen on Linux 6.18).
  if (file_system == "fuse") unfit_for_io_uring_ = "on FUSE it misplaces the rest of short transfers";
  description_ = folder_ + " (" + file_system;
  if (ram_) description_ += ", which is RAM";
  description_ += direct ? ", direct I/O, memory aligned to " + std::to_string(alignment_.memory) + ", length to " +
                               std::to_string(alignment_.length) + ")"
                         : ", buffered: no direct I/O here)";
}

SpillFile::SpillFile(int fd, std::string folder) noexcept : fd_(fd), owner_(::getpid()), folder_(std::move(folder)) {}

SpillFile::SpillFile(SpillFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      owner_(other.owner_),
      folder_(std::move(other.folder_)),
      size_(other.size_),
      alignment_(other.alignment_),
      ram_(other.ram_),
      unfit_for_io_uring_(std::move(other.unfit_for_io_uring_)),
      description_(std::move(other.description_)) {}

SpillFile::~SpillFile() {
  if (fd_ < 0) return;
  // A child that forked without exec (a data loader's worker) has a copy of the descriptor, and while it lives the close
  // alone would free nothing. If this fails, the blocks are free when the last copy is closed.
  if (::getpid() == owner_) [[maybe_unused]]
    const int cut = ::ftruncate(fd_, 0);
  ::close(fd_);
}

Status SpillFile::grow(uint64_t bytes) {
  int error = 0;
  do {
    error = ::fallocate(fd_, 0, static_cast<off_t>(size_), static_cast<off_t>(bytes - size_)) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error == EOPNOTSUPP) {  // NFS, some FUSE: the room cannot be promised, so a write may say ENOSPC later
    error = ::ftruncate(fd_, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
  }
  if (error == 0) {
    size_ = bytes;
    return success();
  }
  // ext4 leaves the file extended, and the blocks taken, after a fallocate that found no space.
  const bool back = ::ftruncate(fd_, static_cast<off_t>(size_)) == 0;
  const FailureCode code =
      error == ENOSPC || error == EDQUOT || error == EFBIG ? FailureCode::kNoSpace : FailureCode::kIo;
  Failure failure = system_failure(
      code, error, "Cannot reserve " + to_string(Bytes(static_cast<int64_t>(bytes - size_))) + " in " + folder_);
  if (!back) failure.message += " The file could not be cut back to its size either.";
  return failure;
}

}  // namespace ebbtide::nvme
