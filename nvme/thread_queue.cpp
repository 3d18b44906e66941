#include <ebbtide/nvme/thread_queue.h>

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <mutex>

namespace ebbtide::nvme {
namespace {

/// Wakes sleeping workers. Shared by the handle and the workers, either of which may go first.
struct Bell {
  std::mutex mutex;
  std::condition_variable rung;
  uint64_t rings = 0;  // guarded by mutex
};

void work(IoSource& source, Bell& bell, const QueueOptions& options) noexcept {
  for (;;) {
    uint64_t heard = 0;
    {
      std::lock_guard lock(bell.mutex);
      heard = bell.rings;  // before next(): a ring between next() and the wait must not be slept through
    }
    IoRequest request;
    switch (source.next(request)) {
      case IoSource::Next::kFinished:
        return;
      case IoSource::Next::kNothing: {
        std::unique_lock lock(bell.mutex);
        bell.rung.wait(lock, [&] { return bell.rings != heard; });
        break;
      }
      case IoSource::Next::kRequest: {
        IoProgress progress(request, options.length_alignment);
        int answer = 0;
        do {
          const auto offset = static_cast<off_t>(progress.offset());
          const ssize_t moved = request.write ? ::pwrite(options.fd, progress.data(), progress.bytes(), offset)
                                              : ::pread(options.fd, progress.data(), progress.bytes(), offset);
          answer = moved < 0 ? -errno : static_cast<int>(moved);
          if (options.filter) answer = options.filter(request, answer);
        } while (progress.goes_on(answer));
        source.completed(request, progress.error());
        break;
      }
    }
  }
}

class ThreadQueue final : public IoQueue {
 public:
  explicit ThreadQueue(std::shared_ptr<Bell> bell) noexcept : bell_(std::move(bell)) {}

  void notify() noexcept override {
    {
      std::lock_guard lock(bell_->mutex);
      ++bell_->rings;
    }
    bell_->rung.notify_all();
  }
  const char* name() const noexcept override { return "pread and pwrite in threads"; }

 private:
  std::shared_ptr<Bell> bell_;
};

}  // namespace

StartedQueue start_thread_queue(const QueueOptions& options, std::shared_ptr<IoSource> source) {
  // A request is at most a chunk, so this also bounds the bytes in flight.
  const size_t threads = std::clamp<size_t>(options.bytes_in_flight >> 20, 1, 4);
  auto bell = std::make_shared<Bell>();
  for (size_t i = 0; i < threads; ++i) {
    Status started = start_io_thread("ebbtide-io", [source, bell, options] { work(*source, *bell, options); });
    if (!started && i == 0) return std::move(started).failure();
    if (!started) break;  // fewer threads do the same, slower
  }
  return std::unique_ptr<IoQueue>(std::make_unique<ThreadQueue>(std::move(bell)));
}

}  // namespace ebbtide::nvme
