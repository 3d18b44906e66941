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
/// (`seconds` where it is not set), no limit where EBBTIDE_LONG is set. EBBTIDE_SEED=N tries that one alone. Prints how far it
/// came, in a line that tests/summary.py repeats.
template <class Body>
void sweep(const std::string& what, uint64_t all, Body&& body, double seconds = 90) {
  const auto seed_in_its_scope = [&](uint64_t seed) {
    SCOPED_TRACE("EBBTIDE_SEED=" + std::to_string(seed));
    body(seed);
  };
  if (const char* one = std::getenv("EBBTIDE_SEED")) return seed_in_its_scope(std::stoull(one));

  const char* given = std::getenv("EBBTIDE_SWEEP_SECONDS");
  const std::chrono::duration<double> limit(given != nullptr ? std::stod(given) : seconds);
  const bool limited = std::getenv("EBBTIDE_LONG") == nullptr;
  const auto begin = std::chrono::steady_clock::now();
  uint64_t seed = 0;
  while (seed < all && !testing::Test::HasFailure()) {
    if (limited && std::chrono::steady_clock::now() - begin >= limit) break;
    seed_in_its_scope(++seed);
  }
  std::cout << "sweep: " << what << ": " << seed << " of " << all << " seeds\n";
}

}  // namespace ebbtide::test
