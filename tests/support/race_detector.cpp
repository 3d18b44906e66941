#include "tests/support/race_detector.h"

#include <algorithm>
#include <iterator>

namespace ebbtide::test {

void RaceDetector::note(const void* begin, size_t bytes, Kind kind, const Access& access, const VectorClock& clock) {
  if (bytes == 0) return;
  const auto first = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t end = first + bytes;
  split(first);
  split(end);
  const auto from = runs_.lower_bound(first);
  const auto to = runs_.lower_bound(end);

  for (auto it = from; it != to; ++it) {
    const Run& run = it->second;
    if (run.written) compare(run.write, Kind::kWrite, access, kind, clock);
    if (kind == Kind::kRead) continue;
    for (const Access& read : run.reads) compare(read, Kind::kRead, access, kind, clock);
  }

  if (kind == Kind::kWrite) {
    // Whoever is ordered after this write is ordered after all that it is ordered after; what raced with it has been
    // reported.
    runs_.erase(from, to);
    runs_.emplace(first, Run{end, true, access, {}});
    return;
  }
  uintptr_t covered = first;
  for (auto it = from; it != to; ++it) {
    if (covered < it->first) runs_.emplace_hint(it, covered, Run{it->first, false, {}, {access}});
    covered = it->second.end;
    std::erase_if(it->second.reads, [&](const Access& read) { return read.agent == access.agent; });
    it->second.reads.push_back(access);
  }
  if (covered < end) runs_.emplace_hint(to, covered, Run{end, false, {}, {access}});
}

void RaceDetector::forget(const void* begin, size_t bytes) {
  const auto first = reinterpret_cast<uintptr_t>(begin);
  split(first);
  split(first + bytes);
  runs_.erase(runs_.lower_bound(first), runs_.lower_bound(first + bytes));
}

// Makes `at` a border between runs.
void RaceDetector::split(uintptr_t at) {
  const auto after = runs_.lower_bound(at);
  if (after == runs_.begin()) return;
  Run& run = std::prev(after)->second;
  if (run.end <= at) return;
  runs_.emplace_hint(after, at, run);
  run.end = at;
}

void RaceDetector::compare(const Access& earlier, Kind earlier_kind, const Access& later, Kind later_kind,
                           const VectorClock& clock) {
  if (clock[earlier.agent] >= earlier.step) return;
  const auto verb = [](Kind kind) { return kind == Kind::kWrite ? " writes" : " reads"; };
  races_.insert("'" + later.what + "'" + verb(later_kind) + " what '" + earlier.what + "'" + verb(earlier_kind) +
                ", in no order");
}

}  // namespace ebbtide::test
