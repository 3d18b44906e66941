// What save_plan writes: the plans in force, for stores that are to follow them from their first pass on.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/pinned_pool/result.h>
#include <ebbtide/store/course.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ebbtide {

/// A kind of pass and how it is treated.
struct SavedPlan {
  Course course;
  uint64_t then = 0;  ///< the kind of the pass that came after the last of this one
};

/// As JSON, with a checksum over all of it.
EBBTIDE_API std::string to_json(const std::vector<SavedPlan>& plans);
/// What the plans predict, and the order in which things come back, is worked out anew.
/// Errors: kInvalid, naming what is wrong.
EBBTIDE_API Result<std::vector<SavedPlan>> plans_from_json(std::string_view text);
/// Errors: kInvalid, naming what is wrong; kIo.
EBBTIDE_API Result<std::vector<SavedPlan>> read_plans(const std::string& path);

}  // namespace ebbtide
