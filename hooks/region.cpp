#include <ebbtide/hooks/on_this_thread.h>
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

uint64_t next_number() {
  static std::atomic<uint64_t> next{1};
  return next++;
}

}  // namespace

Region::Region(std::string_view name, Policy policy) : number_(next_number()) {
  entered.push_back({number_, RegionLabel::of(name, policy)});
  OnThisThread::get().region = entered.back().label;
}

Region::~Region() {
  std::erase_if(entered, [&](const Entered& region) { return region.number == number_; });
  OnThisThread::get().region = entered.empty() ? nullptr : entered.back().label;
}

const RegionLabel* current_region() noexcept {
  const OnThisThread& here = OnThisThread::get();
  return here.region != nullptr ? here.region : here.module;
}

}  // namespace ebbtide
