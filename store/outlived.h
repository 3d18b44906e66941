// Memory that outlives its record, in the hands of who unpacked it or of a copy: in no budget, and nobody's to take back.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/transfer/device_storage.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

namespace ebbtide {

/// Mostly empty: a node is done with what it asked for before its records die, and so are most copies.
/// Threads: none of its own; its owner's lock.
class Outlived {
 public:
  void add(std::unique_ptr<StorageWatch> watch, Bytes bytes) {
    if (!watch) return;
    if (entries_.size() >= prune_at_) {
      std::erase_if(entries_, [](const Entry& entry) { return !entry.watch->alive(); });
      prune_at_ = std::max(kLeastToPrune, 2 * entries_.size());
    }
    entries_.push_back({std::move(watch), bytes});
  }

  Bytes bytes() const noexcept {
    Bytes alive;
    for (const Entry& entry : entries_)
      if (entry.watch->alive()) alive += entry.bytes;
    return alive;
  }

 private:
  struct Entry {
    std::unique_ptr<StorageWatch> watch;
    Bytes bytes;
  };
  static constexpr size_t kLeastToPrune = 64;

  std::vector<Entry> entries_;
  size_t prune_at_ = kLeastToPrune;
};

}  // namespace ebbtide
