// Waiting for what another thread does.
#pragma once

#include <chrono>
#include <thread>

namespace ebbtide::test {

/// Whether it happens within ten seconds, which a loaded machine and a slow disk may take.
template <class Condition>
bool eventually(const Condition& happened) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!happened()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

}  // namespace ebbtide::test
