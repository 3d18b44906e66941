// From the framework's storages to the residents that hold them.
#pragma once

#include <ebbtide/store/record.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ebbtide {

/// A hash table with linear probing (Knuth, The Art of Computer Programming 3, 6.4, algorithms L and R): a look-up
/// touches one line of the table, and no resident. Grows, and never shrinks.
/// REQUIRES: no two residents in here have the same identity.
/// Threads: none of its own; its owner's lock.
class StorageIndex {
 public:
  /// Null where there is none.
  Resident* find(const void* identity) const noexcept {
    if (entries_.empty()) return nullptr;
    size_t at = home(identity);
    while (entries_[at].identity != nullptr && entries_[at].identity != identity) at = next(at);
    return entries_[at].resident;
  }
  /// Brings the place into the processor's cache, where the identity is looked for a little later.
  void prefetch(const void* identity) const noexcept {
    if (!entries_.empty()) __builtin_prefetch(&entries_[home(identity)], /*rw=*/1);
  }

  /// REQUIRES: an identity, and no resident of the same in here.
  void insert(Resident& resident) {
    if (size_ + 1 > entries_.size() / 2) grow();
    put({resident.identity, &resident});
    ++size_;
  }

  /// An identity that is not in here is ignored.
  void erase(const void* identity) noexcept {
    if (entries_.empty()) return;
    size_t hole = home(identity);
    while (entries_[hole].identity != identity) {
      if (entries_[hole].identity == nullptr) return;
      hole = next(hole);
    }
    // Whoever was pushed past the hole from a home at or before it moves into it.
    for (size_t at = next(hole); entries_[at].identity != nullptr; at = next(at)) {
      if (distance(home(entries_[at].identity), at) < distance(hole, at)) continue;
      entries_[hole] = entries_[at];
      hole = at;
    }
    entries_[hole] = {};
    --size_;
  }

  size_t size() const noexcept { return size_; }

 private:
  struct Entry {
    const void* identity = nullptr;
    Resident* resident = nullptr;
  };
  static constexpr int kLeastBits = 8;

  /// The multiplier is 2^64 over the golden ratio.
  size_t home(const void* identity) const noexcept {
    return static_cast<size_t>(reinterpret_cast<uintptr_t>(identity) * 0x9E3779B97F4A7C15ULL >> (64 - bits_));
  }
  size_t next(size_t at) const noexcept { return (at + 1) & (entries_.size() - 1); }
  size_t distance(size_t from, size_t to) const noexcept { return (to - from) & (entries_.size() - 1); }

  void put(Entry entry) noexcept {
    size_t at = home(entry.identity);
    while (entries_[at].identity != nullptr) at = next(at);
    entries_[at] = entry;
  }

  void grow() {
    const int bits = entries_.empty() ? bits_ : bits_ + 1;
    std::vector<Entry> before(size_t{1} << bits);  // throws before anything is changed
    before.swap(entries_);
    bits_ = bits;
    for (const Entry& entry : before)
      if (entry.identity != nullptr) put(entry);
  }

  std::vector<Entry> entries_;  // 2^bits_ of them, at most half of them in use; or none
  int bits_ = kLeastBits;
  size_t size_ = 0;
};

}  // namespace ebbtide
