#include "loop_disk.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "own_mounts.h"

namespace ebbtide::nvme {
namespace {

Failure cannot(const std::string& what, int error) {
  return {FailureCode::kUnsupported, error, "cannot " + what + ": " + std::strerror(error)};
}

/// A free loop device over `image`, which the system frees after its last use. A descriptor, or -errno.
int attach(int image) {
  const int control = ::open("/dev/loop-control", O_RDWR | O_CLOEXEC);
  if (control < 0) return -errno;
  int result = -EBUSY;
  for (int attempt = 0; attempt < 100 && result == -EBUSY; ++attempt) {  // others may take the one that was free
    const int number = ::ioctl(control, LOOP_CTL_GET_FREE);
    if (number < 0) {
      result = -errno;
      break;
    }
    const std::string name = "/dev/loop" + std::to_string(number);
    const int loop = ::open(name.c_str(), O_RDWR | O_CLOEXEC);
    if (loop < 0) {
      result = -errno;
      break;
    }
    loop_config config{};
    config.fd = static_cast<uint32_t>(image);
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    if (::ioctl(loop, LOOP_CONFIGURE, &config) == 0) {
      result = loop;
      break;
    }
    result = -errno;
    ::close(loop);
  }
  ::close(control);
  return result;
}

}  // namespace

Result<std::unique_ptr<LoopDisk>> LoopDisk::make(size_t bytes, const std::string& image_folder,
                                                 const std::string& file_system) {
  std::unique_ptr<LoopDisk> disk(new LoopDisk);
  disk->image_ = image_folder + "/ebbtide-image-XXXXXX";
  const int image = ::mkostemp(disk->image_.data(), O_CLOEXEC);
  if (image < 0) {
    disk->image_.clear();
    return cannot("make an image in " + image_folder, errno);
  }
  const int sized = ::ftruncate(image, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
  const std::string tool = "mkfs." + file_system;
  const std::string make_file_system = "PATH=$PATH:/usr/sbin:/sbin " + tool +
                                       (file_system == "ext4" ? " -q -F -m 0 -O ^has_journal " : " -q -f ") +
                                       disk->image_ + " >/dev/null 2>&1";
  const bool made = sized == 0 && std::system(make_file_system.c_str()) == 0;
  if (made) disk->loop_ = attach(image);
  ::close(image);
  if (sized != 0) return cannot("size an image", sized);
  if (!made) return Failure{FailureCode::kUnsupported, 0, tool + " does not work here"};
  if (disk->loop_ < 0) return cannot("attach a loop device", -disk->loop_);
  struct stat status {};
  if (::fstat(disk->loop_, &status) != 0) return cannot("see the loop device", errno);
  const std::string name = "/dev/loop" + std::to_string(minor(status.st_rdev));
  disk->device_number_ = std::to_string(major(status.st_rdev)) + ":" + std::to_string(minor(status.st_rdev));

  std::string folder = image_folder + "/ebbtide-disk-XXXXXX";
  if (::mkdtemp(folder.data()) == nullptr) return cannot("make a folder", errno);
  disk->path_ = folder;
  const int mounted = mount_here(name, folder, file_system, "");
  if (mounted != 0) return cannot("mount a loop device", mounted);
  disk->mounted_ = true;
  return disk;
}

LoopDisk::~LoopDisk() {
  if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  if (loop_ >= 0) ::close(loop_);
  if (!path_.empty()) ::rmdir(path_.c_str());
  if (!image_.empty()) ::unlink(image_.c_str());
}

int LoopDisk::shut_down() {
  const int folder = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return errno;
  uint32_t without_flushing = 2;
  const int error = ::ioctl(folder, _IOR('X', 125, uint32_t), &without_flushing) == 0 ? 0 : errno;
  ::close(folder);
  return error;
}

bool LoopDisk::fill() {
  const int file = ::open((path_ + "/of-somebody-else").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  if (file < 0) return false;
  int error = 0;
  off_t at = 0;
  for (off_t step = 16 << 20; step >= 4096; step /= 2) {
    while ((error = ::posix_fallocate(file, at, step)) == 0) at += step;
  }
  ::close(file);
  return error == ENOSPC;
}

void LoopDisk::free_what_fill_took() {
  ::unlink((path_ + "/of-somebody-else").c_str());
}

Freeze::Freeze(const std::string& path) {
  int until[2], told[2];
  const int folder = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0 || ::pipe2(until, O_CLOEXEC) != 0 || ::pipe2(told, O_CLOEXEC) != 0) {
    error_ = errno;
    return;
  }
  guard_ = ::fork();
  if (guard_ == 0) {
    ::close(until[1]);
    int error = ::ioctl(folder, FIFREEZE, 0) == 0 ? 0 : errno;
    char ignored = 0;
    if (::write(told[1], &error, sizeof error) == static_cast<ssize_t>(sizeof error)) {
      while (::read(until[0], &ignored, 1) < 0 && errno == EINTR) {
      }
    }
    if (error == 0) ::ioctl(folder, FITHAW, 0);
    ::_exit(0);
  }
  ::close(folder);
  ::close(until[0]);
  ::close(told[1]);
  pipe_ = until[1];
  if (guard_ < 0 || ::read(told[0], &error_, sizeof error_) != static_cast<ssize_t>(sizeof error_)) error_ = ECHILD;
  ::close(told[0]);
}

Freeze::~Freeze() {
  if (pipe_ >= 0) ::close(pipe_);
  if (guard_ > 0) ::waitpid(guard_, nullptr, 0);
}

}  // namespace ebbtide::nvme
