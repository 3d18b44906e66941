// Where torch asks for saved-tensor hooks.
#pragma once

#include <memory>

namespace ebbtide {

class StoreCore;

/// Wraps the autograd engine that is there (in a Python process: Python's) in one that supplies a store's hooks under a
/// Scope and delegates all else. No Python object is made and the GIL is not taken. Once a process, leaked: torch keeps
/// a pointer to it.
/// Threads: any; later calls do nothing. In a forked child it passes everything through: the store's threads and rings
/// stayed with the parent. Regions without a store, which need none, go on.
void install_engine();

/// Whether this process is a fork, directly or not, of one in which the engine was installed.
/// Threads: any.
bool in_forked_child() noexcept;

/// Makes forks safe for a store: its lock is taken around them, so that no child inherits it from a thread that it does
/// not have.
/// Threads: any; a core that is known already costs nothing.
void guard_forks(const std::shared_ptr<StoreCore>& core);

}  // namespace ebbtide
