// What a call found to do while it held the core's lock, and does after letting go.
#pragma once

#include <ebbtide/pinned_pool/few.h>
#include <ebbtide/store/store_core.h>

#include <memory>
#include <utility>
#include <vector>

namespace ebbtide {

/// Device memory that may go once `stream`, where it is given back, comes after its copy.
struct StoreCore::Part {
  DeviceLink& link;
  StreamId stream;
  CopyJobPtr job;
  std::shared_ptr<Passage> passage;
  std::shared_ptr<DeviceStorage> storage;
};
struct StoreCore::CopyOut {
  std::shared_ptr<Record> record;
  std::shared_ptr<DeviceStorage> storage;
};
struct StoreCore::CopyIn {
  std::shared_ptr<Record> record;
  StreamId stream;
};
/// No reference to the record: the link thread sinks too, and must not be the one to end it.
struct StoreCore::Sink {
  uint64_t record_id;
  std::shared_ptr<HostCopy> memory;
};

/// Declare it before the lock: what it drops must go after the lock is released.
class StoreCore::Work {
 public:
  explicit Work(StoreCore& core) noexcept : core_(core) {}
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  bool empty() const noexcept {
    return writes.empty() && reads.empty() && cancelled.empty() && demanded.empty() && dropped.empty() &&
           exhumed.empty() && parted.empty() && copies_out.empty() && copies_in.empty() && sinks.empty() &&
           lifts.empty() && cancelled_copies.empty();
  }
  /// REQUIRES: the core's lock is not held. May be called once.
  void run();

  /// In a forked child: what is under way is the parent's.
  void leave_to_parent() noexcept {
    cancelled.clear();
    cancelled_copies.clear();
    reads.clear();
  }

  struct Write {
    std::shared_ptr<Record> record;
    std::shared_ptr<DeviceStorage> storage;
    std::shared_ptr<ReturnedMemory> memory;
  };
  struct Read {
    std::shared_ptr<Record> record;
    Urgency urgency;
  };

  struct CancelledCopy {
    CopyLane& lane;
    CopyJobPtr job;
  };

  Few<Part> parted;
  Few<CopyOut> copies_out;
  Few<CopyIn> copies_in;
  std::vector<Sink> sinks;
  std::vector<Read> lifts;
  Few<CancelledCopy> cancelled_copies;

  Few<std::shared_ptr<Resident>> dropped;
  Few<std::shared_ptr<DeviceStorage>> exhumed;
  std::vector<Write> writes;
  std::vector<Read> reads;
  std::vector<SpillTier::TransferId> cancelled;
  std::vector<SpillTier::TransferId> demanded;

 private:
  StoreCore& core_;
};

}  // namespace ebbtide
