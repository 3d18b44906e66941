// Queues of reads and writes on one file: what they ask for work, and how they are chosen.
#pragma once

#include <ebbtide/pinned_pool/result.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace ebbtide::nvme {

/// One transfer between a run of memory and a run of the queue's file.
struct IoRequest {
  bool write = false;
  std::byte* data = nullptr;
  uint32_t bytes = 0;
  uint64_t offset = 0;
  uint64_t transfer = 0;  ///< the source's own: which transfer this belongs to
  uint32_t segment = 0;   ///< the source's own: which part of it
};

/// Where a queue gets its requests. A queue *pulls*: it asks for the next request when it has room for one, so what is
/// urgent overtakes all that has not been handed to the kernel, what is withdrawn was never begun, and the bytes in
/// flight are bounded.
///
/// Threads: called by the queue's threads, several at once, with no lock held.
class IoSource {
 public:
  enum class Next {
    kRequest,   ///< `request` is filled in
    kNothing,   ///< nothing now; notify() will be called when there is
    kFinished,  ///< never again anything: the calling thread ends
  };
  virtual ~IoSource() = default;
  virtual Next next(IoRequest& request) noexcept = 0;
  /// The kernel has finished with the request's memory. `error`: 0 when all bytes were moved, else an errno.
  virtual void completed(const IoRequest& request, int error) noexcept = 0;
};

/// Moves requests on threads of its own, which hold the source (and so all that it owns) until it has finished. Short
/// transfers are resumed, EAGAIN and EINTR tried again a bounded number of times, before a request is reported
/// completed. Lifetime: destroying the handle ends nothing and waits for nothing.
class IoQueue {
 public:
  virtual ~IoQueue() = default;
  /// To be called after the source got work, or finished, if a next() returned kNothing since. Threads: any.
  virtual void notify() noexcept = 0;
  /// Memory that requests will touch again and again, and that they will not touch any more. Threads: any.
  virtual void use_memory(std::byte* /*data*/, size_t /*bytes*/) noexcept {}
  virtual void forget_memory(const std::byte* /*data*/, size_t /*bytes*/) noexcept {}
  /// Of it, what is registered with the kernel.
  virtual size_t registered_bytes() const noexcept { return 0; }
  /// "io_uring" or "pread and pwrite in 4 threads".
  virtual const char* name() const noexcept = 0;
};

/// What the kernel answered to an attempt: bytes moved, or -errno. Returns what the queue is to believe.
/// A seam for tests: scripts short transfers, EAGAIN and EIO. Threads: called by the queue's threads.
using AnswerFilter = std::function<int(const IoRequest& request, int answer)>;

struct QueueOptions {
  int fd = -1;  ///< stays open as long as the source lives
  size_t bytes_in_flight = size_t{16} << 20;
  size_t length_alignment = 512;
  std::string unfit_for_io_uring;  ///< why the file must not be used through io_uring; empty: it may
  AnswerFilter filter;
};

using StartedQueue = Result<std::unique_ptr<IoQueue>>;
/// How a tier gets its queues. `why_not_io_uring` is filled in where another was chosen.
using QueueFactory =
    std::function<StartedQueue(const QueueOptions&, std::shared_ptr<IoSource>, std::string& why_not_io_uring)>;

/// io_uring where the kernel, the container and `allow_io_uring` permit, else threads. Errors: kUnsupported, no thread
/// could be started.
StartedQueue start_queue(const QueueOptions& options, std::shared_ptr<IoSource> source, bool allow_io_uring,
                         std::string& why_not_io_uring);

/// Runs `body` on a new thread that nobody joins, with all signals blocked, since a user's handlers expect the user's
/// threads. Errors: kUnsupported.
Status start_io_thread(const char* name, std::function<void()> body);

/// A request on its way, through as many attempts as it takes.
class IoProgress {
 public:
  IoProgress() = default;
  IoProgress(const IoRequest& request, size_t length_alignment) noexcept
      : request_(request), length_alignment_(static_cast<uint32_t>(length_alignment)) {}

  const IoRequest& request() const noexcept { return request_; }
  std::byte* data() const noexcept { return request_.data + moved_; }
  uint32_t bytes() const noexcept { return request_.bytes - moved_; }
  uint64_t offset() const noexcept { return request_.offset + moved_; }

  /// Takes in the answer to an attempt. True: attempt the rest again. False: it is over, with error().
  bool goes_on(int answer) noexcept;
  int error() const noexcept { return error_; }

 private:
  IoRequest request_;
  uint32_t length_alignment_ = 1;
  uint32_t moved_ = 0;
  int vain_ = 0;  // attempts in a row that moved nothing
  int error_ = 0;
};

}  // namespace ebbtide::nvme
