// Naming what is saved in a part of a program.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/region.h>

#include <cstdint>
#include <string_view>

namespace ebbtide {

/// While it lives, what is saved on this thread is in the region `name`: the report and the plan list it so. A policy
/// other than kAuto says what becomes of it, whatever the rule or the plan would do. Regions nest, and the innermost that
/// lives counts. It comes before the paths of modules (ModulePath), inside them and around them.
///
/// Threads: made and destroyed on one thread, in any order (Python generators do).
class EBBTIDE_API Region {
 public:
  /// Errors: ConfigError for an empty name.
  explicit Region(std::string_view name, Policy policy = Policy::kAuto);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

 private:
  const uint64_t number_;
};

/// That of this thread, or of the module whose forward runs; null where there is neither.
EBBTIDE_API const RegionLabel* current_region() noexcept;

}  // namespace ebbtide
