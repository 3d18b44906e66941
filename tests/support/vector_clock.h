// What is ordered before what, among agents that run side by side: streams, host threads, a disk.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace ebbtide::test {

/// Whoever does things one after another. Counted from 0.
enum class AgentId : uint32_t {};

/// For each agent, how many of its steps are ordered before a point.
class VectorClock {
 public:
  uint64_t operator[](AgentId agent) const noexcept {
    const auto i = static_cast<size_t>(agent);
    return i < steps_.size() ? steps_[i] : 0;
  }
  void set(AgentId agent, uint64_t steps) {
    const auto i = static_cast<size_t>(agent);
    if (i >= steps_.size()) steps_.resize(i + 1);
    steps_[i] = steps;
  }
  /// This point then comes after all that `other` comes after.
  void join(const VectorClock& other) {
    if (other.steps_.size() > steps_.size()) steps_.resize(other.steps_.size());
    for (size_t i = 0; i < other.steps_.size(); ++i) steps_[i] = std::max(steps_[i], other.steps_[i]);
  }

 private:
  std::vector<uint64_t> steps_;
};

}  // namespace ebbtide::test
