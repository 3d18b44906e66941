// Where a record's bytes are, and which moves between places there are.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

namespace ebbtide {

/// The state of one record. "Resident" is the memory that the framework computes on (for CPU tensors: host memory);
/// "lower" is what lies below it.
enum class RecordState {
  kResident,   ///< resident only: dropping it would lose the bytes
  kLeaving,    ///< resident; a copy to the lower tier is under way
  kClean,      ///< resident, and a lower copy exists (or will, by what is enqueued): droppable at once
  kLower,      ///< the lower copy only
  kReturning,  ///< the lower copy, and a transfer into resident memory under way
  kRedone,     ///< neither: its recipe makes the bytes again
  kLost,       ///< the lower copy could not be read back: every unpack says why
  kDead,       ///< no hook is left
};
inline constexpr size_t kRecordStates = 8;

std::string_view to_string(RecordState state) noexcept;

/// The one table of transitions; what is not in it is a defect.
constexpr bool may_become(RecordState from, RecordState to) noexcept {
  using enum RecordState;
  constexpr size_t n = kRecordStates;
  // clang-format off
  constexpr std::array<std::array<bool, n>, n> kTable = {{
      //               Resident Leaving Clean  Lower  Return Redone Lost   Dead
      /* Resident  */ {false,   true,   false, false, false, true,  false, true},
      /* Leaving   */ {true,    false,  true,  false, false, false, false, true},   // back to Resident: the transfer failed or was cancelled
      /* Clean     */ {true,    false,  false, true,  false, false, false, true},   // back to Resident: the copy, enqueued, failed after all
      /* Lower     */ {false,   false,  false, false, true,  false, false, true},
      /* Returning */ {false,   false,  true,  true,  false, false, true,  true},   // back to Lower: no memory for it yet
      /* Redone    */ {true,    false,  false, false, false, false, false, true},
      /* Lost      */ {false,   false,  false, false, false, false, false, true},
      /* Dead      */ {false,   false,  false, false, false, false, false, false},
  }};
  // clang-format on
  return kTable[static_cast<size_t>(from)][static_cast<size_t>(to)];
}

}  // namespace ebbtide
