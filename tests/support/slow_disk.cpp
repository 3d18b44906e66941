// Preloaded before a test (tests/run.sh --slow-disk): io_uring is not to be had, and each request of the threads that
// take its place lasts up to EBBTIDE_SLOW_DISK_US microseconds more, at random, so that they end in any order. What a
// test expects of a disk without having waited for it fails.
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <random>

namespace {

void delay(size_t bytes, off_t offset) {
  static const long most_us = [] {
    const char* value = std::getenv("EBBTIDE_SLOW_DISK_US");
    return value != nullptr ? std::strtol(value, nullptr, 10) : 5000;
  }();
  thread_local std::minstd_rand random(std::random_device{}());
  const bool direct = bytes % 512 == 0 && offset % 512 == 0;  // the spill tier's; not those of the dynamic linker
  if (most_us > 0 && bytes > 0 && direct && random() % 3 == 0) ::usleep(static_cast<useconds_t>(random() % most_us));
}

}  // namespace

extern "C" {

int io_uring_queue_init(unsigned, void*, unsigned) {
  return -ENOSYS;
}
ssize_t pread(int fd, void* to, size_t bytes, off_t offset) {
  delay(bytes, offset);
  return ::syscall(SYS_pread64, fd, to, bytes, offset);
}
ssize_t pwrite(int fd, const void* from, size_t bytes, off_t offset) {
  delay(bytes, offset);
  return ::syscall(SYS_pwrite64, fd, from, bytes, offset);
}

}  // extern "C"
