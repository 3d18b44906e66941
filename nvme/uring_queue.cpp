#include <ebbtide/nvme/disk_runs.h>
#include <ebbtide/nvme/fixed_buffers.h>
#include <ebbtide/nvme/uring_queue.h>

#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <future>
#include <utility>
#include <vector>

#include <ebbtide/nvme/spill_file.h>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

// Linux 6.0 and 6.1; liburing 2.2 does not name them, and passes them on.
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

namespace ebbtide::nvme {
namespace {

// Requests in flight at most. Enough for items of 64 KiB; large ones meet the bound on bytes first.
constexpr unsigned kDepth = 64;
constexpr uint32_t kLargestRequest = uint32_t{1} << 20;
constexpr uint64_t kBellTag = ~uint64_t{0};

// liburing maps and unmaps by bare system calls, which ThreadSanitizer does not see: it would take a new ring at an old
// ring's address for the same memory, used by two threads.
#ifdef __SANITIZE_THREAD__
char rings_unmapped;  // only its address matters
void before_unmapping_ring() noexcept {
  __tsan_release(&rings_unmapped);
}
void after_mapping_ring() noexcept {
  __tsan_acquire(&rings_unmapped);
}
#else
void before_unmapping_ring() noexcept {}
void after_mapping_ring() noexcept {}
#endif

/// Wakes the ring's thread. An eventfd, since that thread waits in the kernel for its ring. Shared by the handle and
/// the thread.
class Bell {
 public:
  Bell() noexcept : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  Bell(const Bell&) = delete;
  Bell& operator=(const Bell&) = delete;
  ~Bell() {
    if (fd_ >= 0) ::close(fd_);
  }
  int fd() const noexcept { return fd_; }
  void ring() noexcept {
    const uint64_t one = 1;
    // EAGAIN means that the counter is full: it has been rung, and not been heard yet.
    while (::write(fd_, &one, sizeof one) < 0 && errno == EINTR) {
    }
  }
  void hear() noexcept {
    uint64_t rings = 0;
    while (::read(fd_, &rings, sizeof rings) < 0 && errno == EINTR) {
    }
  }

 private:
  int fd_;
};

/// The ring and what is in flight in it. Used by one thread only, which also creates it (IORING_SETUP_SINGLE_ISSUER).
class Ring {
 public:
  Ring(const QueueOptions& options, std::shared_ptr<Bell> bell, std::shared_ptr<FixedBuffers> buffers)
      : options_(options),
        bell_(std::move(bell)),
        buffers_(std::move(buffers)),
        runs_(options.fd, options.length_alignment) {}
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring() {
    if (!open_) return;
    // A child that forked without exec has a copy of the ring's descriptor, which keeps the ring and all that is
    // registered with it. (Only the ring's own thread comes here, and a child has no such thread.)
    buffers_->close(ring_);
    if (fixed_file_) (void)::io_uring_unregister_files(&ring_);
    before_unmapping_ring();
    ::io_uring_queue_exit(&ring_);
  }

  Status open();
  void run(IoSource& source) noexcept;

 private:
  struct Completed {
    IoRequest request;
    int error;
  };

  Status try_one_operation();
  bool has_room() const noexcept {
    return !idle_.empty() && (bytes_ == 0 || bytes_ + kLargestRequest <= options_.bytes_in_flight);
  }
  unsigned in_flight() const noexcept { return static_cast<unsigned>(slots_.size() - idle_.size()); }
  void prepare(uint32_t slot) noexcept;
  void listen() noexcept;
  void reap(std::vector<Completed>& completed) noexcept;

  const QueueOptions options_;
  const std::shared_ptr<Bell> bell_;
  const std::shared_ptr<FixedBuffers> buffers_;
  DiskRuns runs_;
  io_uring ring_{};
  bool open_ = false;
  bool fixed_file_ = false;
  bool listening_ = false;  // a poll of the bell is in the ring
  std::vector<IoProgress> slots_;
  std::vector<uint32_t> idle_;  // slots without a request
  size_t bytes_ = 0;            // in flight
};

Status Ring::open() {
  // DEFER_TASKRUN (6.1) completes in this thread's own calls instead of interrupting it; older kernels do without.
  int error = ::io_uring_queue_init(2 * kDepth, &ring_, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
  if (error == -EINVAL) error = ::io_uring_queue_init(2 * kDepth, &ring_, 0);
  if (error < 0) return system_failure(FailureCode::kUnsupported, -error, "io_uring_setup");
  open_ = true;
  after_mapping_ring();
  error = ::io_uring_ring_dontfork(&ring_);  // a child's copy of the ring would submit into the parent's
  if (error < 0) return system_failure(FailureCode::kUnsupported, -error, "madvise(MADV_DONTFORK) of the ring");
  Status tried = try_one_operation();
  if (!tried) return tried;
  fixed_file_ =
      ::io_uring_register_files(&ring_, &options_.fd, 1) == 0;  // saves a reference a request; else the plain fd
  (void)buffers_->open(ring_);                                  // else without
  slots_.resize(kDepth);
  for (uint32_t i = kDepth; i-- > 0;) idle_.push_back(i);
  return success();
}

/// A sandbox may allow the set-up and forbid the rest; an old kernel may lack the operations.
Status Ring::try_one_operation() {
  io_uring_probe* probe = ::io_uring_get_probe_ring(&ring_);
  const bool known = probe != nullptr && ::io_uring_opcode_supported(probe, IORING_OP_READ) &&
                     ::io_uring_opcode_supported(probe, IORING_OP_WRITE) &&
                     ::io_uring_opcode_supported(probe, IORING_OP_POLL_ADD);
  ::io_uring_free_probe(probe);
  if (!known) return system_failure(FailureCode::kUnsupported, ENOSYS, "io_uring read, write and poll");
  ::io_uring_prep_nop(::io_uring_get_sqe(&ring_));
  io_uring_cqe* cqe = nullptr;
  int error = ::io_uring_submit_and_wait(&ring_, 1);
  if (error >= 0) error = ::io_uring_peek_cqe(&ring_, &cqe);
  if (error < 0) return system_failure(FailureCode::kUnsupported, -error, "io_uring_enter");
  ::io_uring_cqe_seen(&ring_, cqe);
  return success();
}

/// Puts a slot's next attempt into the ring. The submission queue has twice as many entries as there are slots, so
/// there is always one.
void Ring::prepare(uint32_t slot) noexcept {
  const IoProgress& progress = slots_[slot];
  io_uring_sqe* sqe = ::io_uring_get_sqe(&ring_);
  const int file = fixed_file_ ? 0 : options_.fd;
  const bool write = progress.request().write;
  const uint64_t offset = progress.offset();
  const uint32_t bytes = write ? runs_.write_at_once(offset, progress.bytes()) : progress.bytes();
  if (const auto buffer = buffers_->slot_of(progress.data(), bytes)) {
    const auto index = static_cast<int>(*buffer);
    if (write)
      ::io_uring_prep_write_fixed(sqe, file, progress.data(), bytes, offset, index);
    else
      ::io_uring_prep_read_fixed(sqe, file, progress.data(), bytes, offset, index);
  } else if (write) {
    ::io_uring_prep_write(sqe, file, progress.data(), bytes, offset);
  } else {
    ::io_uring_prep_read(sqe, file, progress.data(), bytes, offset);
  }
  if (fixed_file_) sqe->flags |= IOSQE_FIXED_FILE;
  ::io_uring_sqe_set_data64(sqe, slot);
}

void Ring::listen() noexcept {
  io_uring_sqe* sqe = ::io_uring_get_sqe(&ring_);
  ::io_uring_prep_poll_add(sqe, bell_->fd(), POLLIN);
  ::io_uring_sqe_set_data64(sqe, kBellTag);
  listening_ = true;
}

/// Takes in all completions that are there. Requests that need another attempt stay in flight.
void Ring::reap(std::vector<Completed>& completed) noexcept {
  io_uring_cqe* cqe = nullptr;
  while (::io_uring_peek_cqe(&ring_, &cqe) == 0) {
    const uint64_t tag = ::io_uring_cqe_get_data64(cqe);
    int answer = cqe->res;
    ::io_uring_cqe_seen(&ring_, cqe);
    if (tag == kBellTag) {
      bell_->hear();
      listening_ = false;
      continue;
    }
    const auto slot = static_cast<uint32_t>(tag);
    IoProgress& progress = slots_[slot];
    if (options_.filter) answer = options_.filter(progress.request(), answer);
    if (progress.goes_on(answer)) {
      prepare(slot);
      continue;
    }
    bytes_ -= progress.request().bytes;
    idle_.push_back(slot);
    completed.push_back({progress.request(), progress.error()});
  }
}

void Ring::run(IoSource& source) noexcept {
  std::vector<Completed> completed;
  for (;;) {
    buffers_->apply(ring_);
    while (has_room()) {
      IoRequest request;
      const IoSource::Next next = source.next(request);
      if (next == IoSource::Next::kFinished) return;  // nothing of the source's is in flight then
      if (next == IoSource::Next::kNothing) break;
      const uint32_t slot = idle_.back();
      idle_.pop_back();
      slots_[slot] = IoProgress(request, options_.length_alignment);
      bytes_ += request.bytes;
      prepare(slot);
    }
    if (!listening_) listen();
    // With completions at hand: first give the device its next requests, then work on them (checksums) while it is
    // busy. Else sleep; a full ring, which can take no new request whoever rings, until several have completed, since
    // each waking costs as much as a request.
    const unsigned wanted = !completed.empty() ? 0 : has_room() ? 1 : std::max(1u, in_flight() / 4);
    const int submitted = ::io_uring_submit_and_wait(&ring_, wanted);
    if (submitted < 0 && submitted != -EINTR) {
      // Out of memory for requests, or completions to be fetched first. What is in the ring stays there: its memory may
      // be in the kernel's hands, so there is nothing to do but to go on, and not to spin.
      ::poll(nullptr, 0, 1);
    }
    for (const Completed& one : completed) source.completed(one.request, one.error);
    completed.clear();
    reap(completed);
  }
}

class UringQueue final : public IoQueue {
 public:
  UringQueue(std::shared_ptr<Bell> bell, std::shared_ptr<FixedBuffers> buffers) noexcept
      : bell_(std::move(bell)), buffers_(std::move(buffers)) {}
  void notify() noexcept override { bell_->ring(); }
  void use_memory(std::byte* data, size_t bytes) noexcept override {
    if (buffers_->use(data, bytes)) bell_->ring();
  }
  void forget_memory(const std::byte* data, size_t bytes) noexcept override {
    if (buffers_->forget(data, bytes)) bell_->ring();
  }
  size_t registered_bytes() const noexcept override { return buffers_->bytes(); }
  const char* name() const noexcept override { return "io_uring"; }

 private:
  std::shared_ptr<Bell> bell_;
  std::shared_ptr<FixedBuffers> buffers_;
};

}  // namespace

StartedQueue start_uring_queue(const QueueOptions& options, std::shared_ptr<IoSource> source) {
  auto bell = std::make_shared<Bell>();
  if (bell->fd() < 0) return system_failure(FailureCode::kUnsupported, errno, "eventfd");
  auto buffers = std::make_shared<FixedBuffers>();
  auto opened = std::make_shared<std::promise<Status>>();
  std::future<Status> status = opened->get_future();
  Status started = start_io_thread("ebbtide-io", [options, bell, buffers, opened, source = std::move(source)] {
    Ring ring(options, bell, buffers);
    Status ready = ring.open();
    const bool ok = ready.ok();
    opened->set_value(std::move(ready));
    if (ok) ring.run(*source);
  });
  if (started) started = status.get();
  if (!started) return std::move(started).failure();
  return std::unique_ptr<IoQueue>(std::make_unique<UringQueue>(std::move(bell), std::move(buffers)));
}

}  // namespace ebbtide::nvme
