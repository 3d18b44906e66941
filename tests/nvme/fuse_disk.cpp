#include "fuse_disk.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "own_mounts.h"

namespace ebbtide::nvme {
namespace {

constexpr uint32_t kMostBytes = uint32_t{1} << 20;  // a request

Failure cannot(const std::string& what, int error) {
  return {FailureCode::kUnsupported, error, "cannot " + what + ": " + std::strerror(error)};
}

fuse_attr attributes(uint64_t node, uint64_t bytes) {
  fuse_attr attr{};
  attr.ino = node;
  attr.size = bytes;
  attr.blocks = bytes / 512;
  attr.mode = node == FUSE_ROOT_ID ? S_IFDIR | 0700 : S_IFREG | 0600;
  attr.nlink = 1;
  attr.uid = ::geteuid();
  attr.gid = ::getegid();
  attr.blksize = 4096;
  return attr;
}

template <class T>
T read_as(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace

Result<std::unique_ptr<FuseDisk>> FuseDisk::make(const std::string& in_folder) {
  std::unique_ptr<FuseDisk> disk(new FuseDisk);
  disk->device_ = ::open("/dev/fuse", O_RDWR | O_CLOEXEC);
  if (disk->device_ < 0) return cannot("open /dev/fuse", errno);
  disk->end_ = ::eventfd(0, EFD_CLOEXEC);
  if (disk->end_ < 0) return cannot("make an eventfd", errno);
  disk->path_ = in_folder + "/ebbtide-fuse-XXXXXX";
  if (::mkdtemp(disk->path_.data()) == nullptr) return cannot("make a folder", errno);
  const int mounted =
      mount_here("ebbtide-test", disk->path_, "fuse",
                 "fd=" + std::to_string(disk->device_) + ",rootmode=40000,user_id=" + std::to_string(::geteuid()) +
                     ",group_id=" + std::to_string(::getegid()));
  if (mounted != 0) return cannot("mount a FUSE file system", mounted);
  disk->mounted_ = true;
  disk->server_ = std::thread([raw = disk.get()] { raw->serve(); });
  return disk;
}

FuseDisk::~FuseDisk() {
  if (server_.joinable()) {
    const uint64_t one = 1;
    if (::write(end_, &one, sizeof one) < 0) std::abort();
    server_.join();
  }
  if (device_ >= 0) ::close(device_);  // what is under way fails now
  if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  if (end_ >= 0) ::close(end_);
  if (!path_.empty()) ::rmdir(path_.c_str());
}

void FuseDisk::answer_with(Answer answer) {
  const std::lock_guard lock(mutex_);
  answer_ = std::move(answer);
}

void FuseDisk::refuse_growth(int error) {
  const std::lock_guard lock(mutex_);
  growth_error_ = error;
}

void FuseDisk::flip_bits(bool flip) {
  const std::lock_guard lock(mutex_);
  flips_ = flip;
}

size_t FuseDisk::named_files() const {
  const std::lock_guard lock(mutex_);
  return names_.size();
}

void FuseDisk::serve() {
  std::vector<std::byte> request(kMostBytes + (64 << 10));
  for (;;) {
    pollfd wanted[] = {{device_, POLLIN, 0}, {end_, POLLIN, 0}};
    if (::poll(wanted, 2, -1) < 0 && errno != EINTR) return;
    if (wanted[1].revents != 0) return;
    const ssize_t got = ::read(device_, request.data(), request.size());
    if (got < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT)) continue;
    if (got < static_cast<ssize_t>(sizeof(fuse_in_header))) return;  // unmounted
    handle(read_as<fuse_in_header>(request.data()), request.data() + sizeof(fuse_in_header));
  }
}

void FuseDisk::reply(uint64_t unique, int error, const void* data, size_t bytes) {
  fuse_out_header header{};
  header.unique = unique;
  header.error = -error;
  header.len = static_cast<uint32_t>(sizeof header + bytes);
  iovec parts[] = {{&header, sizeof header}, {const_cast<void*>(data), bytes}};
  // Who asked may have been interrupted, and is not there any more.
  if (::writev(device_, parts, bytes > 0 ? 2 : 1) < 0 && errno != ENOENT) std::perror("fuse_disk");
}

void FuseDisk::handle(const fuse_in_header& header, const std::byte* body) {
  const std::lock_guard lock(mutex_);
  const uint64_t id = header.unique, node = header.nodeid;
  const auto size_of = [&](uint64_t of) { return files_.contains(of) ? files_[of].size() : 0; };
  const auto entry_of = [&](uint64_t of) {
    fuse_entry_out entry{};
    entry.nodeid = of;
    entry.attr = attributes(of, size_of(of));
    return entry;
  };
  const auto reply_attributes = [&] {
    fuse_attr_out out{};
    out.attr = attributes(node, size_of(node));
    reply(id, 0, &out, sizeof out);
  };
  switch (header.opcode) {
    case FUSE_INIT: {
      fuse_init_out out{};
      out.major = FUSE_KERNEL_VERSION;
      out.minor = std::min<uint32_t>(31, read_as<fuse_init_in>(body).minor);
      out.flags = FUSE_MAX_PAGES;
      out.max_write = kMostBytes;
      out.max_pages = kMostBytes / 4096;
      out.max_background = 16;
      out.congestion_threshold = 12;
      return reply(id, 0, &out, sizeof out);
    }
    case FUSE_LOOKUP: {
      const auto found = names_.find(reinterpret_cast<const char*>(body));
      if (found == names_.end()) return reply(id, ENOENT);
      const fuse_entry_out out = entry_of(found->second);
      return reply(id, 0, &out, sizeof out);
    }
    case FUSE_CREATE: {
      const char* name = reinterpret_cast<const char*>(body + sizeof(fuse_create_in));
      names_[name] = ++last_node_;
      files_[last_node_];
      struct {
        fuse_entry_out entry;
        fuse_open_out open;
      } out{entry_of(last_node_), {}};
      out.open.open_flags = FOPEN_DIRECT_IO;
      return reply(id, 0, &out, sizeof out);
    }
    case FUSE_GETATTR:
      return reply_attributes();
    case FUSE_SETATTR: {
      const auto in = read_as<fuse_setattr_in>(body);
      if (growth_error_ != 0 && (in.valid & FATTR_SIZE) && in.size > size_of(node)) return reply(id, growth_error_);
      if (in.valid & FATTR_SIZE) files_[node].resize(in.size);
      return reply_attributes();
    }
    case FUSE_FALLOCATE: {
      const auto in = read_as<fuse_fallocate_in>(body);
      if (growth_error_ != 0 && in.offset + in.length > size_of(node)) return reply(id, growth_error_);
      if (in.mode == 0) files_[node].resize(std::max<size_t>(files_[node].size(), in.offset + in.length));
      return reply(id, in.mode == 0 ? 0 : EOPNOTSUPP);
    }
    case FUSE_WRITE: {
      const auto in = read_as<fuse_write_in>(body);
      const int moved = answer_ ? answer_(true, in.offset, in.size) : static_cast<int>(in.size);
      if (moved < 0) return reply(id, -moved);
      std::vector<std::byte>& file = files_[node];
      file.resize(std::max<size_t>(file.size(), in.offset + static_cast<uint64_t>(moved)));
      std::memcpy(file.data() + in.offset, body + sizeof in, static_cast<size_t>(moved));
      fuse_write_out out{};
      out.size = static_cast<uint32_t>(moved);
      return reply(id, 0, &out, sizeof out);
    }
    case FUSE_READ: {
      const auto in = read_as<fuse_read_in>(body);
      std::vector<std::byte>& file = files_[node];
      const uint64_t there = in.offset < file.size() ? std::min<uint64_t>(in.size, file.size() - in.offset) : 0;
      const int moved = answer_ ? answer_(false, in.offset, static_cast<uint32_t>(there)) : static_cast<int>(there);
      if (moved < 0) return reply(id, -moved);
      std::byte* const data = file.data() + in.offset;
      if (flips_ && moved > 0) data[moved / 2] ^= std::byte{1};
      reply(id, 0, data, static_cast<size_t>(moved));
      if (flips_ && moved > 0) data[moved / 2] ^= std::byte{1};
      return;
    }
    case FUSE_UNLINK:
      names_.erase(reinterpret_cast<const char*>(body));
      return reply(id, 0);
    case FUSE_STATFS: {
      fuse_statfs_out out{};
      out.st.bsize = out.st.frsize = 4096;
      out.st.blocks = out.st.bfree = out.st.bavail = 1 << 16;
      out.st.namelen = 255;
      return reply(id, 0, &out, sizeof out);
    }
    case FUSE_FLUSH:
    case FUSE_RELEASE:
      return reply(id, 0);
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
      return;  // these want no answer
    default:
      return reply(id, ENOSYS);
  }
}

}  // namespace ebbtide::nvme
