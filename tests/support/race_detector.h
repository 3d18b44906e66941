// Finds accesses to the same bytes that nothing puts in order, whatever the schedule of this run happened to be.
#pragma once

#include "tests/support/vector_clock.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace ebbtide::test {

/// One step of one agent, and what it is called in reports.
struct Access {
  AgentId agent{};
  uint64_t step = 0;  ///< the agent's own count, this step included
  std::string what;
};

/// The happens-before check of FastTrack (Flanagan and Freund, 2009), on byte ranges in place of variables: for every
/// run of bytes it remembers the last write and, since then, the last read of each agent. Two accesses race if one
/// writes and the later one's clock does not contain the earlier one.
///
/// Threads: one at a time.
class RaceDetector {
 public:
  enum class Kind { kRead, kWrite };

  /// Notes that `access`, ordered after all in `clock`, touches [begin, begin + bytes).
  void note(const void* begin, size_t bytes, Kind kind, const Access& access, const VectorClock& clock);

  /// The bytes are new: whoever touched their addresses before touched other memory.
  void forget(const void* begin, size_t bytes);

  /// A line a pair of accesses that raced, naming both sides; without addresses, so that a replay gives the same lines.
  const std::set<std::string>& races() const noexcept { return races_; }

 private:
  struct Run {  // bytes [key, end) with the same history
    uintptr_t end = 0;
    bool written = false;
    Access write;
    std::vector<Access> reads;  // at most one an agent
  };
  using Runs = std::map<uintptr_t, Run>;

  void split(uintptr_t at);
  void compare(const Access& earlier, Kind earlier_kind, const Access& later, Kind later_kind,
               const VectorClock& clock);

  Runs runs_;  // disjoint
  std::set<std::string> races_;
};

}  // namespace ebbtide::test
