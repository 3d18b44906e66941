// What a call found to do while it held the core's lock, and does after letting go.
#pragma once

#include <ebbtide/pinned_pool/few.h>
#include <ebbtide/store/store_core.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace ebbtide {

/// Device memory that may go once `stream`, where it is given back, comes after its copy.
struct StoreCore::Part {
  DeviceLink& link;
  std::shared_ptr<DeviceTimes> times;  // of the record's pass; may be null
  StreamId stream;
  CopyJobPtr job;
  std::shared_ptr<Passage> passage;
  std::shared_ptr<DeviceStorage> storage;
};
struct StoreCore::CopyOut {
  std::shared_ptr<Record> record;
  std::shared_ptr<DeviceStorage> storage;
};
/// Who unpacks.
struct StoreCore::Caller {
  StreamId stream;
  /// It unpacks where it packed, as backwards do: what is fetched ahead will be asked for where that was packed.
  bool as_packed = false;

  Caller(StreamId on) noexcept : stream(on) {}  // NOLINT: nothing is known but the stream
  Caller(StreamId on, const Record& asked) noexcept : stream(on), as_packed(asked.stream_ == on) {}
  StreamId stream_of(const Record& wanted) const noexcept { return as_packed ? wanted.stream_ : stream; }
};
struct StoreCore::CopyIn {
  std::shared_ptr<Record> record;
  StreamId stream;   ///< that the memory is for
  StreamId callers;  ///< that of who enqueues
};
/// No reference to the record: the link thread sinks too, and must not be the one to end it.
struct StoreCore::Sink {
  uint64_t record_id;
  std::shared_ptr<HostCopy> memory;
};

/// While it lives, the calling thread makes `stream` wait: no part of what its pass computes.
class StoreCore::MarkedWait {
 public:
  /// `times`: of the pass; may be null.
  MarkedWait(DeviceTimes* times, const Device& device, StreamId stream) noexcept
      : times_(times != nullptr && times->marks_steps() ? times : nullptr),
        device_(device),
        stream_(stream),
        begin_(times_ != nullptr ? times_->here(device, stream) : DeviceTimes::Point()) {}
  ~MarkedWait() {
    if (times_ != nullptr) times_->waited(begin_, times_->here(device_, stream_));
  }
  MarkedWait(const MarkedWait&) = delete;
  MarkedWait& operator=(const MarkedWait&) = delete;

 private:
  DeviceTimes* const times_;
  const Device& device_;
  const StreamId stream_;
  const DeviceTimes::Point begin_;
};

/// Declare it before the lock: what it drops must go after the lock is released.
class StoreCore::Work {
 public:
  explicit Work(StoreCore& core) noexcept : core_(core) {}
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  bool empty() const noexcept { return dropped.empty() && exhumed.empty() && !orders_; }
  /// REQUIRES: the core's lock is not held. May be called once.
  void run();

  /// In a forked child: what is under way is the parent's.
  void leave_to_parent() noexcept {
    if (!orders_) return;
    orders_->cancelled.clear();
    orders_->cancelled_copies.clear();
    orders_->reads.clear();
  }

  struct Write {
    std::shared_ptr<Record> record;
    std::shared_ptr<DeviceStorage> storage;
  };
  struct Read {
    std::shared_ptr<Record> record;
    Urgency urgency;
  };

  struct CancelledCopy {
    CopyLane& lane;
    CopyJobPtr job;
  };

  /// What transfers are begun for and ended.
  struct Orders {
    Few<Part> parted;
    Few<CopyOut> copies_out;
    Few<CopyIn> copies_in;
    std::vector<Sink> sinks;
    std::vector<Read> lifts;
    Few<CancelledCopy> cancelled_copies;

    std::vector<Write> writes;
    std::vector<Read> reads;
    std::vector<SpillTier::TransferId> cancelled;
    std::vector<SpillTier::TransferId> demanded;
  };
  /// REQUIRES: one is given. Made when first asked for: most calls give none.
  Orders& orders() { return orders_ ? *orders_ : orders_.emplace(); }

  Few<std::shared_ptr<Resident>> dropped;
  Few<std::shared_ptr<DeviceStorage>> exhumed;
  std::shared_ptr<HostCopy> of_system;  ///< whose end calls the driver

 private:
  void run(Orders& orders);

  StoreCore& core_;
  std::optional<Orders> orders_;
};

}  // namespace ebbtide
