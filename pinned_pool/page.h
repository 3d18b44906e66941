// The system's page size: 4 KiB on x86-64; on arm64 4, 16 or 64 KiB, as the kernel was built.
#pragma once

#include <unistd.h>

#include <cstddef>

namespace ebbtide::pinned_pool {

inline size_t page_bytes() noexcept {
  static const auto bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace ebbtide::pinned_pool
