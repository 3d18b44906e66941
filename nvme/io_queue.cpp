#include <ebbtide/nvme/io_queue.h>
#include <ebbtide/nvme/thread_queue.h>
#include <ebbtide/nvme/uring_queue.h>

#include <pthread.h>
#include <signal.h>

#include <cerrno>
#include <system_error>
#include <thread>

namespace ebbtide::nvme {

StartedQueue start_queue(const QueueOptions& options, std::shared_ptr<IoSource> source, bool allow_io_uring,
                         std::string& why_not_io_uring) {
  if (!allow_io_uring) {
    why_not_io_uring = "switched off";
  } else if (!options.unfit_for_io_uring.empty()) {
    why_not_io_uring = options.unfit_for_io_uring;
  } else {
    StartedQueue queue = start_uring_queue(options, source);
    if (queue) return queue;
    why_not_io_uring = queue.failure().message;
  }
  return start_thread_queue(options, std::move(source));
}

Status start_io_thread(const char* name, std::function<void()> body) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  Status status = success();
  try {
    std::thread([name, body = std::move(body)]() mutable {
      pthread_setname_np(pthread_self(), name);
      body();
      body = nullptr;
    }).detach();
  } catch (const std::system_error& error) {
    status = Failure{FailureCode::kUnsupported, error.code().value(),
                     std::string("Cannot start an I/O thread: ") + error.what() + "."};
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return status;
}

bool IoProgress::goes_on(int answer) noexcept {
  constexpr int kMostVain = 16;
  if (answer < 0 && answer != -EAGAIN && answer != -EINTR) {
    error_ = -answer;
    return false;
  }
  if (answer > 0 && static_cast<uint32_t>(answer) >= bytes()) return false;
  // Direct I/O goes on only at an aligned place: what was moved beyond it is moved again.
  const uint32_t aligned = answer > 0 ? static_cast<uint32_t>(answer) / length_alignment_ * length_alignment_ : 0;
  moved_ += aligned;
  vain_ = aligned > 0 ? 0 : vain_ + 1;
  if (vain_ < kMostVain) return true;
  error_ = answer < 0 ? -answer : EIO;  // no error, no progress: the file is shorter than it was made
  return false;
}

}  // namespace ebbtide::nvme
