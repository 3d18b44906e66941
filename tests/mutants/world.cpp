#include "tests/mutants/world.h"

#include <cstdio>
#include <cstdlib>

namespace ebbtide::mutants {

World* World::now_ = nullptr;

World::World(test::ChaosDevice& device, std::string left_out, uint64_t seed)
    : device_(device), left_out_(std::move(left_out)), random_(seed * 7919 + 1) {
  now_ = this;
}

World::~World() {
  now_ = nullptr;
}

void World::turn() {
  constexpr int64_t kStuck = 1'000'000;
  if (++turns_ > kStuck) {
    std::fprintf(stderr, "without '%s' the program waits for ever\n", left_out_.c_str());
    std::abort();
  }
  if (in_turn_ || actors_.empty()) return;
  in_turn_ = true;
  actors_[random_() % actors_.size()]();
  in_turn_ = false;
}

void World::memory_begins() {
  device_.host_after(allocator_);
}

void World::memory_read(const void* data) {
  const auto [first, last] = watched_.equal_range(data);
  for (auto it = first; it != last; ++it)
    if (const auto transfer = transfers_.find(it->second); transfer != transfers_.end())
      if (const EventPtr event = transfer->second()) device_.should_have_passed(event);
  watched_.erase(first, last);
}

void World::memory_ends(const void* data, size_t bytes) {
  memory_read(data);  // as much as that
  const test::VectorClock freed = device_.host_moment();
  const test::ChaosDevice::AgentScope next(device_, "its next owner");
  device_.host_after(freed);
  device_.host_write(data, bytes, "free host memory");
  allocator_.join(device_.host_moment());
}

void World::storage_ends(const void* data, StreamId stream) {
  const auto [first, last] = watched_.equal_range(data);
  for (auto it = first; it != last; ++it)
    if (const auto transfer = transfers_.find(it->second); transfer != transfers_.end())
      if (const EventPtr event = transfer->second()) device_.should_come_after(stream, event);
  watched_.erase(first, last);
}

void World::end_transfer(const void* transfer) {
  transfers_.erase(transfer);
  std::erase_if(watched_, [&](const auto& watched) { return watched.second == transfer; });
}

EventPtr World::meant_by(const void* holder) const {
  const auto found = meant_.find(holder);
  return found == meant_.end() ? nullptr : found->second;
}

}  // namespace ebbtide::mutants
