#include <ebbtide/transfer/resident_set.h>

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <optional>
#include <string_view>

namespace ebbtide {
namespace {

/// Of "VmRSS:     123 kB" and the like, in the text of a status file.
std::optional<Bytes> size_called(std::string_view name, std::string_view text) noexcept {
  const size_t begin = text.find(name);
  if (begin == std::string_view::npos) return std::nullopt;
  text.remove_prefix(begin + name.size());
  text.remove_prefix(std::min(text.find_first_not_of(": \t"), text.size()));
  int64_t kib = 0;
  if (std::from_chars(text.data(), text.data() + text.size(), kib).ec != std::errc()) return std::nullopt;
  return KiB(kib);
}

}  // namespace

Result<MemoryUsage> ResidentSet::usage() {
  std::array<char, 4096> text;  // it has less than 2 KiB
  const int file = ::open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  ssize_t size = -1;
  if (file >= 0) {
    size = ::read(file, text.data(), text.size());
    ::close(file);
  }
  const std::string_view status(text.data(), size > 0 ? static_cast<size_t>(size) : 0);
  const auto now = size_called("VmRSS", status);
  const auto peak = size_called("VmHWM", status);
  if (!now || !peak)
    return Failure{FailureCode::kUnsupported, errno, "/proc/self/status does not tell the memory of this process"};
  return MemoryUsage{.now = *now, .peak = std::max(*now, *peak)};
}

void ResidentSet::restart_peak() {
  const int file = ::open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
  if (file < 0) return;
  (void)!::write(file, "5", 1);
  ::close(file);
}

}  // namespace ebbtide
