// What tells a deadlock from a slow test.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

namespace ebbtide::test {

/// Ends the program, saying where it was, once nothing has been told for so long.
/// Threads: any.
class Watchdog {
 public:
  explicit Watchdog(std::chrono::milliseconds patience) : thread_([this, patience] { watch(patience); }) {}
  ~Watchdog() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  void now(std::string where) {
    {
      const std::lock_guard lock(mutex_);
      where_ = std::move(where);
      ++told_;
    }
    changed_.notify_one();
  }

 private:
  void watch(std::chrono::milliseconds patience) {
    std::unique_lock lock(mutex_);
    for (int64_t seen = told_; !ended_; seen = told_) {
      if (changed_.wait_for(lock, patience, [&] { return ended_ || told_ != seen; })) continue;
      std::fprintf(stderr, "a deadlock? Nothing for %lld ms; last: %s\n", static_cast<long long>(patience.count()),
                   where_.c_str());
      std::abort();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::string where_ = "the beginning";
  int64_t told_ = 0;
  bool ended_ = false;
  std::thread thread_;
};

}  // namespace ebbtide::test
