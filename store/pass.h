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

  template <class T>
  static T& of(std::vector<T>& each, size_t device) {
    if (each.size() <= device) each.resize(device + 1);
    return each[device];
  }

  PassStats stats_;
  std::vector<Record*> sequence_;  // in order of packing; a record stands at its latest pack only; null once it is dead
  // A device each.
  std::vector<size_t> next_;  // prefetch: all at and above this place has been looked at
  std::vector<Bytes> saved_on_;
  std::vector<Bytes> redoable_on_;  // part of it: what has a recipe
  int64_t live_ = 0;
  std::set<int> tasks_;  // graph tasks that unpacked from it and have not ended
  bool in_backward_ = false;
  bool takes_packs_ = true;
  bool ended_ = false;
};

}  // namespace ebbtide
