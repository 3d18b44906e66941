// What one pass did, and when: which records it packed, asked for and let go of.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace ebbtide {

/// A record that can be made again from others of its pass.
struct ProfiledRecipe {
  double seconds = 0;            ///< of compute, one redo, its inputs being there
  std::vector<uint32_t> inputs;  ///< the records that it reads, by index; each may have a recipe itself
  /// Where one run makes several records: the first of them. `seconds` then is what the run takes from the one before this
  /// to this. It makes all of them that are to be redone, and ends after the last.
  std::optional<uint32_t> group = {};

  bool operator==(const ProfiledRecipe&) const = default;
};

enum class Mobility {
  kMovable,
  kElsewhere,  ///< somebody else holds the storage too: it stays, and is not in the budget
  kStays,      ///< no tier below can hold it: it stays, and is in the budget
};

struct ProfiledRecord {
  Bytes bytes;  ///< in resident memory
  Bytes moved;  ///< when it leaves or comes back; rows have fewer
  uint32_t device = 0;
  Mobility mobility = Mobility::kMovable;
  std::optional<ProfiledRecipe> recipe;
  std::string op;      ///< that made it; may be empty
  std::string region;  ///< may be empty
  uint64_t kind = 0;   ///< a hash of dtype and shape

  bool operator==(const ProfiledRecord&) const = default;
};

/// Seconds of compute since the pass's first pack: the time that the pass would have taken until then if nothing had
/// been waited for, nor redone.
struct ProfiledStep {
  enum class What : uint8_t { kPack, kUnpack, kDeath };
  What what = What::kPack;
  uint32_t record = 0;
  double at = 0;

  bool operator==(const ProfiledStep&) const = default;
};

/// A pure value. `steps` stand in the order in which they happened, so their times never fall: a record's pack, then
/// any number of unpacks, then its death, if it had died by the end. The first unpack is where the backward begins.
struct EBBTIDE_API Profile {
  static constexpr uint32_t kMostDevices = 1024;

  std::vector<ProfiledRecord> records;  ///< by index in the pass, in order of packing
  std::vector<ProfiledStep> steps;
  double seconds = 0;  ///< of compute, from the first pack to the end

  /// What no planner could work with: an index out of range, a step out of order, a negative number, more than an exbibyte,
  /// a recipe that rests on itself. None: all is well.
  std::optional<std::string> invalid() const;
  bool operator==(const Profile&) const = default;
};

/// What a redo of each record takes, by index, as far as that can be said of one alone: where one run makes several, its
/// share of the whole run, by bytes. Zero where there is no recipe.
EBBTIDE_API std::vector<double> redo_shares(const Profile& profile);

/// The last of the passes, each of its times being the median of that time in all that did the same: packed records of
/// the same size, kind and op, and took the same steps. None of none.
EBBTIDE_API std::optional<Profile> median(std::span<const Profile> passes);

}  // namespace ebbtide
