#include <ebbtide/hooks/module_path.h>
#include <ebbtide/hooks/on_this_thread.h>

#include <algorithm>
#include <vector>

namespace ebbtide {
namespace {

thread_local std::vector<const RegionLabel*> entered;

}  // namespace

void ModulePath::enter() const {
  entered.push_back(label_);
  OnThisThread::get().module = label_;
}

void ModulePath::leave() const noexcept {
  const auto last = std::find(entered.rbegin(), entered.rend(), label_);
  if (last != entered.rend()) leave_to(static_cast<size_t>(entered.rend() - last) - 1);
}

size_t ModulePath::depth() noexcept {
  return entered.size();
}

void ModulePath::leave_to(size_t depth) noexcept {
  if (depth < entered.size()) entered.resize(depth);
  OnThisThread::get().module = entered.empty() ? nullptr : entered.back();
}

}  // namespace ebbtide
