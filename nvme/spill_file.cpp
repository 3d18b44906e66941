#include <ebbtide/nvme/spill_file.h>

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
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

constexpr size_t kSmallest = 512, kLargest = 4096;  // that are tried

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

/// The smallest alignment from `least` on with which a write gets through. Leaves the file empty.
std::optional<IoAlignment> alignment_by_trial(int fd, size_t least) {
  const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(kLargest, 2 * kLargest), &std::free);
  if (!memory) return {};
  std::memset(memory.get(), 0, 2 * kLargest);
  std::optional<IoAlignment> found;
  for (size_t align : {least, kLargest}) {
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

/// As statfs says it; 0: it does not.
unsigned long file_system_of(int fd) {
  struct statfs status {};
  return ::fstatfs(fd, &status) == 0 ? static_cast<unsigned long>(status.f_type) : 0;
}

/// REQUIRES: the file is empty.
void overwrite_in_place(int fd, unsigned long file_system) {
  // btrfs would write to new places, against the reservation, and keep checksums, for which newer kernels move all writes
  // through the page cache. The tier has its own checksums. Elsewhere the flag means other things.
  if (file_system != BTRFS_SUPER_MAGIC) return;
  int flags = 0;
  if (::ioctl(fd, FS_IOC_GETFLAGS, &flags) != 0) return;
  flags |= FS_NOCOW_FL;
  (void)::ioctl(fd, FS_IOC_SETFLAGS, &flags);  // refused, it is slower
}

std::string file_system_name(unsigned long type) {
  switch (type) {
    case 0:
      return "unknown file system";
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

size_t least_alignment(unsigned long file_system, size_t block) noexcept {
  switch (file_system) {
    case EXT4_SUPER_MAGIC:
    case XFS_SUPER_MAGIC:  // these refuse what they cannot do directly
    case TMPFS_MAGIC:
    case FUSE_SUPER_MAGIC:
    case NFS_SUPER_MAGIC:  // and these want no alignment
      return kSmallest;
    default:
      return std::clamp(std::bit_floor(block), kSmallest, kLargest);
  }
}

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
  const unsigned long type = file_system_of(fd_);
  overwrite_in_place(fd_, type);
  if (direct) {
    struct stat status {};
    const size_t block = ::fstat(fd_, &status) == 0 ? static_cast<size_t>(status.st_blksize) : kLargest;
    std::optional<IoAlignment> alignment = alignment_by_statx(fd_);
    if (!alignment) alignment = alignment_by_trial(fd_, least_alignment(type, block));
    direct = alignment && alignment->memory != 0 && alignment->length != 0;
    if (direct) alignment_ = *alignment;
  }
  if (!direct) {
    alignment_ = {1, 1};
    const int flags = ::fcntl(fd_, F_GETFL);
    if (flags >= 0 && (flags & O_DIRECT)) ::fcntl(fd_, F_SETFL, flags & ~O_DIRECT);
  }
  ram_ = type == TMPFS_MAGIC || type == RAMFS_MAGIC;
  const std::string file_system = file_system_name(type);
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
