#include <ebbtide/hooks/collective_watch.h>

#include <ATen/record_function.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <string_view>

namespace ebbtide {
namespace {

/// Of the thread.
struct Watching {
  int depth = 0;
  at::CallbackHandle handle = 0;
  uint64_t seen = 0;
};
thread_local Watching watching;
/// On threads without a watch: the engine's, which run nodes of a backward that a thread with one has asked for, and to
/// which torch carries the callback of that thread.
std::atomic<uint64_t> seen_elsewhere{0};
std::atomic<bool> seen_in_this_process{false};

/// Operators of c10d, and what backends call themselves where they are used without it.
bool is_collective(std::string_view name) {
  static constexpr std::array<std::string_view, 8> kBegin{
      "c10d::", "_c10d_functional::", "c10d_functional::", "record_param_comms", "gloo:", "nccl:", "mpi:", "ucc:"};
  for (const std::string_view begin : kBegin)
    if (name.starts_with(begin)) return name.find("wait_tensor") == std::string_view::npos;
  return false;
}

std::unique_ptr<at::ObserverContext> note(const at::RecordFunction& function) {
  if (!is_collective(function.name())) return nullptr;
  if (watching.depth != 0)
    ++watching.seen;
  else
    ++seen_elsewhere;
  seen_in_this_process.store(true, std::memory_order_relaxed);
  return nullptr;
}

}  // namespace

CollectiveWatch::CollectiveWatch() : before_(watching.seen + seen_elsewhere) {
  if (watching.depth++ == 0)
    watching.handle = at::addThreadLocalCallback(
        at::RecordFunctionCallback(&note).scopes({at::RecordScope::FUNCTION, at::RecordScope::USER_SCOPE}));
}

CollectiveWatch::~CollectiveWatch() {
  if (--watching.depth == 0) at::removeCallback(watching.handle);
}

bool CollectiveWatch::seen() const noexcept {
  return watching.seen + seen_elsewhere != before_;
}

bool CollectiveWatch::expected() noexcept {
  if (seen_in_this_process.load(std::memory_order_relaxed)) return true;
  static const bool several = [] {
    const char* size = std::getenv("WORLD_SIZE");
    return size != nullptr && std::atoi(size) > 1;
  }();
  return several;
}

}  // namespace ebbtide
