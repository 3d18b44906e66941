#include <ebbtide/hooks/module_path.h>
#include <ebbtide/hooks/region.h>

#include <algorithm>
#include <atomic>
#include <vector>

namespace ebbtide {
namespace {

struct Entered {
  uint64_t number;
  const RegionLabel* label;
};
thread_local std::vector<Entered> entered;
thread_local const RegionLabel* innermost = nullptr;  // by itself: looked at for each tensor that is saved

uint64_t next_number() {
  static std::atomic<uint64_t> next{1};
  return next++;
}

}  // namespace

Region::Region(std::string_view name, Policy policy) : number_(next_number()) {
  entered.push_back({number_, RegionLabel::of(name, policy)});
  innermost = entered.back().label;
}

Region::~Region() {
  std::erase_if(entered, [&](const Entered& region) { return region.number == number_; });
  innermost = entered.empty() ? nullptr : entered.back().label;
}

const RegionLabel* current_region() noexcept {
  return innermost != nullptr ? innermost : ModulePath::current();
}

}  // namespace ebbtide
