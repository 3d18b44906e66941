// The top tier of one device: which saved storages lie in its memory, in which order they may leave, and how many bytes
// they hold.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/store/device_link.h>
#include <ebbtide/store/intrusive_list.h>
#include <ebbtide/store/record.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <memory>
#include <utility>

namespace ebbtide {

/// A resident is in exactly one list. Guarded by the core's lock.
class DeviceTier {
 public:
  enum class Place {
    kElsewhere,  ///< somebody else holds the storage too: not in the budget, looked at again
    kDirty,      ///< the store's alone, and the only copy
    kRedoable,   ///< the store's alone, and no other copy, but a recipe
    kLeaving,    ///< a copy of it is under way
    kClean,      ///< a lower copy exists
    kReturning,  ///< a transfer fills it
  };

  DeviceTier(std::shared_ptr<Device> on, size_t number) noexcept : device(std::move(on)), index(number) {}

  const std::shared_ptr<Device> device;
  const size_t index;                ///< as views name it
  std::shared_ptr<DeviceLink> link;  ///< set for accelerators, once: host memory needs none

  Bytes expected_pass;      ///< what the last pass that had a backward saved on this device
  Bytes expected_redoable;  ///< part of it: what had recipes
  Bytes largest_pass_saved;
  int64_t copy_errors = 0;  ///< in a row

  Bytes budget;
  bool budget_given = false;  ///< a promise; else automatic

  Bytes held() const noexcept { return held_; }
  Bytes peak() const noexcept { return peak_; }
  Bytes bytes(Place place) const noexcept { return bytes_[slot(place)]; }
  const IntrusiveList<Resident>& list(Place place) const noexcept { return lists_[slot(place)]; }

  void add(Resident& resident, Place place) noexcept { insert(resident, place, /*at_front=*/false); }
  void move(Resident& resident, Place place, bool to_front = false) noexcept {
    remove(resident);
    insert(resident, place, to_front);
  }
  void remove(Resident& resident) noexcept {
    const Place place = place_of(resident);
    lists_[slot(place)].remove(resident);
    bytes_[slot(place)] -= resident.bytes;
    if (place != Place::kElsewhere) held_ -= resident.bytes;
  }
  Place place_of(const Resident& resident) const noexcept {
    for (Place place : kPlaces)
      if (list(place).contains(resident)) return place;
    return Place::kElsewhere;
  }
  void note_peak() noexcept { peak_ = std::max(peak_, held_); }

 private:
  static constexpr Place kPlaces[] = {Place::kElsewhere, Place::kDirty, Place::kRedoable,
                                      Place::kLeaving,   Place::kClean, Place::kReturning};
  static constexpr size_t slot(Place place) noexcept { return static_cast<size_t>(place); }

  void insert(Resident& resident, Place place, bool at_front) noexcept {
    at_front ? lists_[slot(place)].push_front(resident) : lists_[slot(place)].push_back(resident);
    bytes_[slot(place)] += resident.bytes;
    if (place != Place::kElsewhere) held_ += resident.bytes;
  }

  IntrusiveList<Resident> lists_[std::size(kPlaces)];
  Bytes bytes_[std::size(kPlaces)];
  Bytes held_;  // all but kElsewhere
  Bytes peak_;
};

}  // namespace ebbtide
