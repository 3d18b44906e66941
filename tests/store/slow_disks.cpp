#include "tests/store/slow_disks.h"

#include <ebbtide/nvme/io_queue.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if _GLIBCXX_USE_CXX11_ABI
#define WHY_NOT "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
#else
#define WHY_NOT "Ss"
#endif
#define START_QUEUE "_ZN7ebbtide4nvme11start_queueERKNS0_12QueueOptionsESt10shared_ptrINS0_8IoSourceEEbR" WHY_NOT

namespace ebbtide {
namespace nvme {

StartedQueue really_start_queue(const QueueOptions& options, std::shared_ptr<IoSource> source, bool allow_io_uring,
                                std::string& why_not_io_uring) asm("__real_" START_QUEUE);
StartedQueue start_slow_queue(const QueueOptions& options, std::shared_ptr<IoSource> source, bool allow_io_uring,
                              std::string& why_not_io_uring) asm("__wrap_" START_QUEUE);

}  // namespace nvme

namespace test {
namespace {

using Clock = std::chrono::steady_clock;

/// One transfer after the other.
/// Lifetime: shared with the queue's threads, which may outlive the test.
class Disk {
 public:
  explicit Disk(double bytes_per_second) : bytes_per_second_(bytes_per_second) {}
  void set_speed(double bytes_per_second) { bytes_per_second_ = bytes_per_second; }

  /// Threads: the queue's, which has nothing to report before.
  void move(int bytes) {
    const std::chrono::duration<double> takes(bytes / bytes_per_second_.load());
    Clock::time_point end;
    {
      const std::lock_guard lock(mutex_);
      end = free_at_ = std::max(free_at_, Clock::now()) + std::chrono::duration_cast<Clock::duration>(takes);
    }
    std::this_thread::sleep_until(end);
  }

 private:
  std::atomic<double> bytes_per_second_;
  std::mutex mutex_;
  Clock::time_point free_at_;
};

struct Weather {
  std::mutex mutex;
  bool bad = false;
  double bytes_per_second = 0;
  std::vector<std::shared_ptr<Disk>> disks;
};
Weather weather;

}  // namespace

SlowDisks::SlowDisks(double bytes_per_second) {
  const std::lock_guard lock(weather.mutex);
  weather.bad = true;
  weather.bytes_per_second = bytes_per_second;
}

SlowDisks::~SlowDisks() {
  const std::lock_guard lock(weather.mutex);
  weather.bad = false;
  weather.disks.clear();
}

void SlowDisks::set_speed(double bytes_per_second) {
  const std::lock_guard lock(weather.mutex);
  weather.bytes_per_second = bytes_per_second;
  for (const auto& disk : weather.disks) disk->set_speed(bytes_per_second);
}

void SlowDisks::set_speed(size_t disk, double bytes_per_second) {
  const std::lock_guard lock(weather.mutex);
  weather.disks.at(disk)->set_speed(bytes_per_second);
}

size_t SlowDisks::count() const {
  const std::lock_guard lock(weather.mutex);
  return weather.disks.size();
}

}  // namespace test

nvme::StartedQueue nvme::start_slow_queue(const QueueOptions& options, std::shared_ptr<IoSource> source,
                                          bool allow_io_uring, std::string& why_not_io_uring) {
  QueueOptions slow = options;
  {
    const std::lock_guard lock(test::weather.mutex);
    if (test::weather.bad) {
      auto disk = std::make_shared<test::Disk>(test::weather.bytes_per_second);
      test::weather.disks.push_back(disk);
      slow.filter = [disk](const IoRequest&, int answer) {
        if (answer > 0) disk->move(answer);
        return answer;
      };
    }
  }
  return really_start_queue(slow, std::move(source), allow_io_uring, why_not_io_uring);
}

}  // namespace ebbtide
