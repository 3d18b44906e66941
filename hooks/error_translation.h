// What the store's errors are on their way through torch.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/error.h>

#include <utility>

namespace ebbtide {

/// Python processes turn the store's errors into exceptions of the Python classes of the same names on their way
/// through torch. `rethrow` is called in a catch block and throws.
/// Threads: set once, before the first scope.
EBBTIDE_API void set_error_translator(void (*rethrow)(const Error& error));

/// Throws what `error` is translated to, or nothing where no translator is set.
void translate(const Error& error);

/// Runs `body`; the store's errors leave as what the process wants them to be.
template <class Body>
auto translated(Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const Error& error) {
    translate(error);
    throw;
  }
}

}  // namespace ebbtide
