// Counts this program's calls of operator new. In one source file of a program of its own: it replaces the operator.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace ebbtide::test {
inline std::atomic<int64_t> allocations{0};
}  // namespace ebbtide::test

// NOLINTBEGIN(misc-definitions-in-headers): see above
void* operator new(std::size_t bytes) {
  ++ebbtide::test::allocations;
  if (void* memory = std::malloc(bytes > 0 ? bytes : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
// NOLINTEND(misc-definitions-in-headers)
