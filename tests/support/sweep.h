// Tests that try as many seeds as time allows.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>

namespace ebbtide::test {

/// Calls `body` with seeds 1, 2, ... until the test has failed, all were tried, or the time is up: EBBTIDE_SWEEP_SECONDS
/// (`seconds` where it is not set), no limit where EBBTIDE_LONG is set. EBBTIDE_SEED=N tries that one alone, N-M those
/// alone, N- those from it on: so that a long run can be split. Prints how far it came, in a line that tests/summary.py
/// repeats. Returns how many it tried.
template <class Body>
uint64_t sweep(const std::string& what, uint64_t all, Body&& body, double seconds = 90) {
  const auto seed_in_its_scope = [&](uint64_t seed) {
    SCOPED_TRACE("EBBTIDE_SEED=" + std::to_string(seed));
    body(seed);
  };
  uint64_t first = 1, last = all;
  if (const char* asked = std::getenv("EBBTIDE_SEED")) {
    const std::string seeds(asked);
    const size_t dash = seeds.find('-');
    first = std::stoull(seeds);
    if (dash == seeds.npos) {
      seed_in_its_scope(first);
      return 1;
    }
    if (dash + 1 < seeds.size()) last = std::stoull(seeds.substr(dash + 1));
  }

  const char* given = std::getenv("EBBTIDE_SWEEP_SECONDS");
  const std::chrono::duration<double> limit(given != nullptr ? std::stod(given) : seconds);
  const bool limited = std::getenv("EBBTIDE_LONG") == nullptr;
  const auto begin = std::chrono::steady_clock::now();
  uint64_t next = first;
  while (next <= last && !testing::Test::HasFailure()) {
    if (limited && std::chrono::steady_clock::now() - begin >= limit) break;
    seed_in_its_scope(next++);
  }
  std::cout << "sweep: " << what << ": " << next - first << " of " << all << " seeds"
            << (first > 1 ? ", from " + std::to_string(first) + " on" : std::string()) << "\n";
  return next - first;
}

}  // namespace ebbtide::test
