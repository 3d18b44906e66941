// Lanes' lines: which transfer is next.
#include <ebbtide/nvme/tier_state.h>

#include <vector>

namespace ebbtide::nvme {

std::deque<uint64_t>& TierState::line_of(Lane& lane, TransferKind kind) noexcept {
  switch (kind) {
    case TransferKind::kDemand:
      return lane.demand;
    case TransferKind::kPrefetch:
      return lane.prefetches;
    case TransferKind::kWrite:
      break;
  }
  return lane.writes;
}

/// What the lane is to work on: demand reads first, then writes and prefetches in turns, each in order of asking.
Transfer* TierState::front_locked(Lane& lane) noexcept {
  const std::deque<uint64_t>* line = &lane.demand;
  if (line->empty()) {
    lane.writes_turn = !lane.writes_turn;
    const bool write = !lane.writes.empty() && (lane.writes_turn || lane.prefetches.empty()) && may_write_locked(lane);
    line = write ? &lane.writes : &lane.prefetches;
  }
  return line->empty() ? nullptr : transfers_.at(line->front()).get();
}

/// A demand read overtakes what waits, but not what the device has begun: while such reads come, and for a few
/// writes after, the device has two writes at a time. When one ends, its thread asks for the next.
bool TierState::may_write_locked(const Lane& lane) const noexcept {
  return lane.few_writes == 0 || lane.writes_in_flight < 2;
}

void TierState::put_in_line_locked(Transfer& transfer) noexcept {
  for (auto& lane : lanes_) {
    if (!transfer.waiting[lane->index].empty()) line_of(*lane, transfer.kind).push_back(transfer.id);
  }
}

void TierState::leave_lines_locked(Transfer& transfer) noexcept {
  for (auto& lane : lanes_) std::erase(line_of(*lane, transfer.kind), transfer.id);
}

void TierState::wake(std::unique_lock<std::mutex>& lock) noexcept {
  std::vector<IoQueue*> sleepers;
  for (auto& lane : lanes_) {
    const bool work = !lane->demand.empty() || !lane->writes.empty() || !lane->prefetches.empty() ||
                      !withdrawn_.empty() || (stopped_ && transfers_.empty());
    if (!lane->asleep || !work || !lane->queue) continue;
    lane->asleep = false;
    sleepers.push_back(lane->queue.get());
  }
  lock.unlock();
  for (IoQueue* queue : sleepers) queue->notify();
}

}  // namespace ebbtide::nvme
