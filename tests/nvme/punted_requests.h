// How many of this process's io_uring requests the kernel has handed to its worker threads (io-wq), since they could not be begun without waiting.
#pragma once

#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>

#include "own_mounts.h"

namespace ebbtide::nvme {

/// Counts by the kernel's tracepoint io_uring_queue_async_work, in threads that are started later and in this one.
class PuntedRequests {
 public:
  PuntedRequests() {
    const std::string tracing = "/sys/kernel/tracing", id = "/events/io_uring/io_uring_queue_async_work/id";
    if (::access((tracing + id).c_str(), R_OK) != 0) {
      if (const int error = mount_here("none", tracing, "tracefs", ""); error != 0) {
        why_not_ = "tracefs cannot be read or mounted: " + std::string(std::strerror(error));
        return;
      }
    }
    perf_event_attr event{};
    event.size = sizeof event;
    event.type = PERF_TYPE_TRACEPOINT;
    event.inherit = 1;
    if (!(std::ifstream(tracing + id) >> event.config)) {
      why_not_ = "this kernel has no tracepoint io_uring_queue_async_work";
      return;
    }
    fd_ = static_cast<int>(::syscall(SYS_perf_event_open, &event, 0, -1, -1, PERF_FLAG_FD_CLOEXEC));
    if (fd_ < 0) why_not_ = "perf_event_open: " + std::string(std::strerror(errno));
  }
  PuntedRequests(const PuntedRequests&) = delete;
  PuntedRequests& operator=(const PuntedRequests&) = delete;
  ~PuntedRequests() {
    if (fd_ >= 0) ::close(fd_);
  }

  /// Empty: it counts.
  const std::string& why_not() const { return why_not_; }
  uint64_t count() const {
    uint64_t count = 0;
    if (::read(fd_, &count, sizeof count) != static_cast<ssize_t>(sizeof count))
      throw std::runtime_error("cannot read a tracepoint's count: " + std::string(std::strerror(errno)));
    return count;
  }

 private:
  int fd_ = -1;
  std::string why_not_;
};

}  // namespace ebbtide::nvme
