// What stands for std::mutex and std::condition_variable in the woven sources.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>

#include "tests/mutants/world.h"

namespace ebbtide::mutants {

/// Orders the agents that take it, as the race detector sees it. There is one thread, so it never blocks: where a real
/// one would, for ever.
class Mutex {
 public:
  void lock() {
    if (locked_) {
      std::fputs("a lock is taken twice by one thread\n", stderr);
      std::abort();
    }
    locked_ = true;
    if (World::now() != nullptr) World::now()->acquire(moment_);
  }
  bool try_lock() {
    if (locked_) return false;
    lock();
    return true;
  }
  void unlock() {
    if (World::now() != nullptr) World::now()->release(moment_);
    locked_ = false;
  }

 private:
  bool locked_ = false;
  test::VectorClock moment_;
};

/// Who waits lets the others have their turns.
class Condition {
 public:
  void notify_one() noexcept {}
  void notify_all() noexcept {}

  template <class Lock, class Predicate>
  void wait(Lock& lock, Predicate done) {
    while (!done()) turn(lock);
  }
  template <class Lock, class Duration>
  std::cv_status wait_for(Lock& lock, Duration) {
    turn(lock);
    return std::cv_status::no_timeout;
  }
  template <class Lock, class Duration, class Predicate>
  bool wait_for(Lock& lock, Duration, Predicate done) {
    turn(lock);
    return done();
  }

 private:
  template <class Lock>
  static void turn(Lock& lock) {
    lock.unlock();
    World::now()->turn();
    lock.lock();
  }
};

}  // namespace ebbtide::mutants
