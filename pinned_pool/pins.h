// How a slab is pinned: in one registration, or in several where so much at once is refused.
#pragma once

#include <ebbtide/pinned_pool/host_registrar.h>

#include <cstddef>
#include <string>
#include <vector>

namespace ebbtide::pinned_pool {

/// The least that is worth a registration of its own.
inline constexpr size_t kLeastPin = size_t{4} << 20;

/// Registrations side by side from the start of a mapping.
///
/// Some systems refuse one registration above a size, others any beyond a total. So what is refused is tried by halves,
/// down to kLeastPin; what comes after the first refusal of that little stays pageable.
///
/// Lifetime: unpins what it pinned when destroyed. The registrar outlives it.
/// Threads:  make() on any; then read-only.
class Pins {
 public:
  Pins() noexcept = default;  ///< nothing is pinned
  /// `data`, `bytes`: multiples of 2 MiB, present.
  static Pins make(HostRegistrar& registrar, std::byte* data, size_t bytes);
  Pins(Pins&& other) noexcept;
  Pins& operator=(Pins&& other) noexcept;
  ~Pins();

  size_t bytes() const noexcept { return ends_.empty() ? 0 : ends_.back(); }
  /// The registrar's reason, if not all is pinned.
  const std::string& refused_because() const noexcept { return refused_because_; }

  /// From `offset` to where its registration ends, or without an end in memory that none covers: what one transfer of a
  /// device may touch.
  size_t to_seam(size_t offset) const noexcept;

 private:
  void unpin() noexcept;

  HostRegistrar* registrar_ = nullptr;
  std::byte* data_ = nullptr;
  std::vector<size_t> ends_;  // offsets, ascending
  std::string refused_because_;
};

}  // namespace ebbtide::pinned_pool
