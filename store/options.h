// What a user may ask of a store.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/pinned_pool/numa_node.h>

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace ebbtide {

/// A share of what the model saves in a pass, 0 to 1; learned from the passes seen so far.
struct Share {
  double value = 1;
  constexpr auto operator<=>(const Share&) const = default;
};

/// What to do when no tier has room.
enum class OnFull {
  kAutomatic,  ///< raise for CPU tensors where device_budget is given, else keep
  kKeep,       ///< keep on the device and warn once
  kRaise,      ///< raise OutOfBudget
};

/// The options of a Store. Fields left at their defaults may be set by the environment: EBBTIDE_DEVICE_BUDGET and so
/// on, one variable a field.
struct EBBTIDE_API Options {
  /// Bytes of saved tensors that may stay where they were computed, a device, over all passes of the store. None: what
  /// is free on the device (of host memory: what the cgroup allows too), less 1/16.
  std::optional<std::variant<Bytes, Share>> device_budget;
  /// Instead of device_budget: the peak that the process may have on each device, all that it allocates there counted; without
  /// an accelerator, of its resident memory. The store measures what is not its own in the first passes, and whenever
  /// the peak was passed, and derives the budget. Then it restarts the peaks that the framework's allocator counts.
  std::optional<Bytes> device_memory;
  /// Bytes of pinned host memory that the tensors of accelerators lie in, and of pooled memory that CPU tensors come
  /// back into: with an accelerator, an eighth at most is for these. None: half of what memory and cgroup leave, divided
  /// by LOCAL_WORLD_SIZE; without an accelerator 5/4 of `device_budget`, 64 MiB to 1 GiB. Never more than memory and
  /// cgroup allow.
  std::optional<Bytes> host_budget;
  OnFull on_full = OnFull::kAutomatic;
  /// Folders on NVMe; several are striped over. None: nothing is spilled.
  std::vector<std::string> spill_to;
  /// None: 90% of the free space.
  std::optional<Bytes> spill_budget;
  /// Left free for others on each spill folder's file system. None: 1/32 of it, 1 GiB at most.
  std::optional<Bytes> spill_reserve;
  /// Written to spill folders in any 24 hours at most, since disks wear out. None: no limit.
  std::optional<Bytes> spill_daily_writes;
  /// What the spill folders' disks together are rated to take over their lives ("600TB"), for `stats` and `report`. None: what NVMe drives say is left.
  std::optional<Bytes> spill_endurance;
  /// Smaller tensors stay. None: 64 KiB for CPU tensors, 1 MiB on accelerators. Under 4 KiB, the unit of the spill tier, little is gained.
  std::optional<Bytes> min_bytes;
  /// What an op made that is cheap to run again is not stored, where the budget needs the memory. None: true.
  std::optional<bool> recompute;
  /// Compare each returned tensor with a fingerprint taken when it left.
  std::optional<bool> verify;
  /// Checksums on the spill tier.
  std::optional<bool> checksum;
  /// The NUMA node that host memory is taken from and that the store's threads keep to; others serve where it is full. None:
  /// the nearest to each device, and to the thread that asks for CPU tensors. kAnyNode: nothing is bound.
  std::optional<NumaNode> numa;
  /// A file that Store::save_plan wrote: its plans are followed from the first pass on, and no others are made. Budgets
  /// are held whatever it says. Empty: plans are made of what is seen.
  std::string plan;
  /// Names of fields that the environment does not fill even where they are left at their defaults: those that
  /// set_option() has set, and any that are put in.
  std::set<std::string, std::less<>> given;
};

/// "512MiB", "2GiB", "1.5TB", "4096", with or without a space before the unit; binary (KiB, MiB, GiB, TiB) and decimal
/// (kB, MB, GB, TB) units. None if it is no size.
EBBTIDE_API std::optional<Bytes> parse_bytes(std::string_view text);

/// Sets the option called `name` from text, as the environment and Python do.
/// Errors: ConfigError naming the option, the value and what is accepted; for an unknown name the nearest known one.
EBBTIDE_API void set_option(Options& options, std::string_view name, std::string_view value);

/// Fills what is unset from the environment and checks the whole.
/// Errors: ConfigError.
EBBTIDE_API Options resolve(Options options);

}  // namespace ebbtide
