#include <ebbtide/store/record_state.h>

namespace ebbtide {

std::string_view to_string(RecordState state) noexcept {
  switch (state) {
    case RecordState::kResident:
      return "resident";
    case RecordState::kLeaving:
      return "leaving";
    case RecordState::kClean:
      return "clean";
    case RecordState::kLower:
      return "lower";
    case RecordState::kReturning:
      return "returning";
    case RecordState::kRedone:
      return "redone";
    case RecordState::kLost:
      return "lost";
    case RecordState::kDead:
      return "dead";
  }
  return "?";
}

}  // namespace ebbtide
