// What a store did, in numbers. Units: bytes and seconds.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ebbtide {

struct TierStats {
  Bytes bytes;  ///< now
  Bytes peak_bytes;
  Bytes budget_bytes;
};

/// The most that one node of a backward had at once, where that was more than the budget can hold.
struct Burst {
  std::string node;  ///< torch's name of it; empty: no backward ran
  Bytes bytes;       ///< what counted in the budget at that moment, and what was handed over
  Bytes saved;       ///< by its pass on this device
};

/// The peak of all that the process has on a device, where the device budget is derived from it. Of the last pass that was
/// measured.
struct MemoryStats {
  Bytes most;      ///< that it may be; 0: there is no such goal
  Bytes peak;      ///< as measured
  Bytes saved;     ///< part of it: saved tensors
  Bytes others;    ///< the most that was taken beside saved tensors
  std::string at;  ///< when the peak was reached, for people
};

struct DeviceStats : TierStats {
  std::string name;
  Bytes handed_over, handed_over_peak;
  Bytes referenced_elsewhere, referenced_elsewhere_peak;
  Bytes alive_peak;
  Burst burst;
  MemoryStats memory;
};

struct Count {
  int64_t tensors = 0;
  Bytes bytes;  ///< storage footprint

  void add(Bytes more) {
    ++tensors;
    bytes += more;
  }
  Count& operator+=(const Count& more) {
    tensors += more.tensors;
    bytes += more.bytes;
    return *this;
  }
};

/// What became of records, each counted when it dies.
struct Fates {
  Count kept, offloaded, spilled, recomputed;

  Fates& operator+=(const Fates& more) {
    kept += more.kept;
    offloaded += more.offloaded;
    spilled += more.spilled;
    recomputed += more.recomputed;
    return *this;
  }
};

struct LinkStats {
  Bytes bytes;
  double busy_s = 0;
};

struct Waits {
  int64_t times = 0;
  double seconds = 0;

  void add(double more) {
    ++times;
    seconds += more;
  }
  Waits& operator+=(const Waits& more) {
    times += more.times;
    seconds += more.seconds;
    return *this;
  }
};

/// What spilling takes from the lives of disks.
struct WearStats {
  Bytes a_pass;              ///< written, over all passes so far
  Bytes a_day;               ///< as it would be at the pace since the store was opened
  double days_to_rated = 0;  ///< until `spill_endurance` has been written at this pace; 0: that is not known
};

/// Cumulative over the store's life unless said otherwise.
struct Stats {
  TierStats device;  ///< saved tensors held where they were computed (CPU tensors: in host memory), all devices
  std::vector<DeviceStats> devices;   ///< each of them, by number; the first is host memory
  TierStats host;                     ///< slabs of the pools
  int64_t host_other_node = 0;        ///< blocks of the pools on another NUMA node than asked for, since that was full
  std::string host_pageable_because;  ///< why not all that accelerators' tensors leave for is pinned; empty where it is
  TierStats spill;

  Count packed;          ///< all that autograd handed over = passed_through + deduplicated + saved
  Count passed_through;  ///< left to autograd, untouched
  Count deduplicated;    ///< another view of a record that is there already
  Count saved;           ///< records made
  std::map<std::string, Count> passed_through_reasons;

  // What became of each record, counted when it dies: disjoint, and summing to `saved` once its pass is over.
  Count kept, offloaded, spilled, recomputed;

  std::map<std::string, Count> recomputed_ops;   ///< what was computed again, by the op that made it
  std::map<std::string, int64_t> unequal_redos;  ///< call sites whose redo gives other bits, by op: they keep bytes

  Bytes recipe_bytes, recipe_bytes_peak;  ///< held to redo: small operands, masks as bits, results that more redos read

  std::map<std::string, Fates> regions;  ///< of what was saved in each, by name

  double stall_s = 0;  ///< seconds that callers waited for a transfer
  /// By what for: "room" (for writes, so that the device budget is held), "host room" (for the disk to take something
  /// over from full host memory), "copies" (for copies that fill host memory, before the disk can), "return" (for what
  /// was asked for before it was back), "close".
  std::map<std::string, Waits> stalls;
  std::map<std::string, Waits> returns_waited_for;  ///< those of "return", by the op that made what was waited for
  std::map<std::string, Waits> stalled_regions;  ///< by the region that saved what was waited for, or saved meanwhile
  double recompute_s = 0;
  LinkStats d2h, h2d, disk_write, disk_read;
  WearStats wear;

  // Alive, and not in the budget. All devices; the peaks are each device's, summed.
  Bytes handed_over, handed_over_peak;                    ///< returned by unpack to who holds it still
  Bytes referenced_elsewhere, referenced_elsewhere_peak;  ///< saved, but someone else holds the storage too
  Bytes alive_peak;    ///< the most of these, of what the budget holds and of what died while a copy read it, at one time
  int64_t passes = 0;  ///< counted when the backward has ended or the last record died

  int64_t plans = 0;  ///< made so far
  // Of the last pass, in seconds: a step, here, is from its first pack to the end of its first backward. 0: it had none,
  // or followed no plan.
  double predicted_step_s = 0;    ///< by the plan that it followed
  double measured_step_s = 0;     ///< with or without a plan; on an accelerator 0 until that is through with it
  double lower_bound_step_s = 0;  ///< by the plan's account no way to treat what it saved takes less
  // The most of device.bytes from its first pack to its end, each device's, summed. 0 as above.
  Bytes predicted_peak_bytes;
  Bytes measured_peak_bytes;
};

/// One pass, from its first pack to its end. `kept` and the others count its records as they died.
struct PassStats {
  int64_t number = 0;  ///< 1 for the store's first
  Count saved, kept, offloaded, spilled, recomputed;
  double stall_s = 0;
  /// From its first pack to the end of its first backward; 0 where it had none, and until the accelerator is through.
  double seconds = 0;
  Bytes device_peak;   ///< the most that counted in budgets meanwhile, other passes' too; each device's, summed
};

}  // namespace ebbtide
