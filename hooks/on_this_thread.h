// What a thread is in: looked at for each tensor that is saved.
#pragma once

#include <ebbtide/store/region.h>

namespace ebbtide {

class HookSource;
class Scope;

/// The innermost of each kind; null where there is none. In one place, since in a library of which a program may load many
/// each look-up of what is a thread's own is a call.
/// Threads: each has its own.
struct OnThisThread {
  Scope* scope = nullptr;
  HookSource* source = nullptr;
  const RegionLabel* region = nullptr;
  const RegionLabel* module = nullptr;

  static OnThisThread& get() noexcept;
};

}  // namespace ebbtide
