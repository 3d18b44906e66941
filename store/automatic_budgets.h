// Budgets where none are given.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace ebbtide {

/// Of saved tensors in host memory of which `left` is free, or on a device with so much free.
constexpr Bytes automatic_device_budget(Bytes left) noexcept {
  return left - left / 16;
}

/// How many processes of a job share this machine, as torchrun says; 1 where nothing says so.
inline int64_t processes_here() noexcept {
  const char* text = std::getenv("LOCAL_WORLD_SIZE");
  int64_t count = 0;
  if (text == nullptr || std::from_chars(text, text + std::strlen(text), count).ec != std::errc() || count < 1)
    return 1;
  return count;
}

/// Of pinned memory for accelerators.
inline Bytes automatic_host_budget(Bytes left) noexcept {
  return left / 2 / processes_here();
}

}  // namespace ebbtide
