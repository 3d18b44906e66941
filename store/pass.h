// One forward under a scope, and its backward.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/stats.h>

#include <cstdint>
#include <memory>
#include <set>
#include <vector>

namespace ebbtide {

class Record;

/// Guarded by the core's lock.
class Pass {
 public:
  explicit Pass(int64_t number) { stats_.number = number; }

 private:
  friend class StoreCore;
  friend class Record;

  struct OnDevice {
    size_t next = 0;  ///< prefetch: all at and above this place of the sequence has been looked at
    Bytes saved;
    Bytes redoable;  ///< part of it: what has a recipe
  };
  OnDevice& on(size_t device) {
    if (on_.size() <= device) on_.resize(device + 1);
    return on_[device];
  }
  OnDevice on(size_t device) const noexcept { return device < on_.size() ? on_[device] : OnDevice(); }

  PassStats stats_;
  std::vector<Record*> sequence_;  // in order of packing; a record stands at its latest pack only; null once it is dead
  std::vector<OnDevice> on_;       // by the devices' numbers
  int64_t live_ = 0;
  std::set<int> tasks_;  // graph tasks that unpacked from it and have not ended
  bool in_backward_ = false;
  bool takes_packs_ = true;
  bool ended_ = false;
};

}  // namespace ebbtide
