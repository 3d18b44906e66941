// One forward under a scope, and its backward.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/device_times.h>
#include <ebbtide/store/pass_log.h>
#include <ebbtide/store/planner.h>
#include <ebbtide/store/stats.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <set>
#include <utility>
#include <vector>

namespace ebbtide {

class Record;
class StoreCore;

/// Lifetime: shared by its records and by the scope. It keeps the core alive.
/// Guarded by the core's lock, but for what is atomic or const.
class Pass {
 public:
  Pass(std::shared_ptr<StoreCore> core, int64_t number, bool logs)
      : core_(std::move(core)), logs_(logs), began_(std::chrono::steady_clock::now()) {
    stats_.number = number;
  }

 private:
  friend class StoreCore;
  friend class Record;

  struct OnDevice {
    size_t next = 0;  ///< prefetch without a plan: all at and above this place of the sequence has been looked at
    size_t turn = 0;  ///< prefetch by plan: all before this turn of its return order has been looked at
    Bytes reserved;   ///< for redos whose turn has come and who have not been asked for yet
    Bytes saved;
    Bytes redoable;  ///< part of it: what has a recipe
  };
  OnDevice& on(size_t device) {
    if (on_.size() <= device) on_.resize(device + 1);
    return on_[device];
  }
  OnDevice on(size_t device) const noexcept { return device < on_.size() ? on_[device] : OnDevice(); }

  const std::shared_ptr<StoreCore> core_;
  PassStats stats_;
  std::vector<Record*> sequence_;  // in order of packing; a record stands at its latest pack only; null once it is dead
  std::vector<Record*> made_;      // by index; null once it is dead
  const bool logs_;
  const PassLog::Time began_;
  PassLog log_;
  std::shared_ptr<const Course> course_;       // what it follows, as far as it has come; null: the reactive rule
  bool learns_ = false;                        // and is learned from: what the plan does not use counts too
  Bytes disk_before_;                          // what disks had moved when it began
  std::vector<OnDevice> on_;                   // by the devices' numbers
  std::shared_ptr<DeviceTimes> times_;         // null: it packed on no accelerator that has a clock
  std::atomic<DeviceTimes*> marked_{nullptr};  // the same, for who has no lock; set once
  const RegionLabel* label_ = nullptr;         // of what it packed last
  int64_t live_ = 0;
  std::set<int> tasks_;               // graph tasks that unpacked from it and have not ended
  std::atomic<int> latest_task_{-1};  // one of them, or none
  bool in_backward_ = false;
  std::atomic<bool> takes_packs_{true};
  bool ended_ = false;
};

}  // namespace ebbtide
