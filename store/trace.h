// What a store did over some passes, on a time line: for people, in Perfetto or chrome://tracing.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace ebbtide {

/// Takes down what happens from the first pass that opens until that many passes have ended; what else runs meanwhile
/// (older passes, transfers) is on it too.
/// Threads: none of its own; its owner's lock.
class EBBTIDE_API Trace {
 public:
  using Time = std::chrono::steady_clock::time_point;

  /// What lasts beyond a call. Several of a kind may run at once.
  enum class Flow : uint8_t { kForward, kBackward, kWrite, kRead, kCopyOut, kCopyIn };
  /// What it was done to.
  struct Of {
    Bytes bytes;
    const char* op = nullptr;      ///< that made it, as typeid names its node; lives as long as the program
    const char* region = nullptr;  ///< that saved it; lives as long as the program
    uint64_t record = 0;           ///< 0: none
    const char* cause = nullptr;   ///< of a wait
  };
  struct Levels {
    Bytes device, host, spill;
  };

  /// REQUIRES: passes > 0.
  Trace(std::string path, int64_t passes) : path_(std::move(path)), passes_(passes) {}

  const std::string& path() const noexcept { return path_; }
  bool running() const noexcept { return opened_ > 0 && ended_ < passes_; }
  bool complete() const noexcept { return ended_ >= passes_; }

  void pass_opened(int64_t number, Time now);
  void pass_ended(int64_t number, Time now);

  // While it runs; else nothing.
  /// What the calling thread did. `what` lives as long as the program.
  void call(const char* what, Time begin, Time end, const Of& of);
  /// `id`: of the record, or of the pass.
  void begin(Flow flow, uint64_t id, Time now, const Of& of);
  /// One that did not begin while the trace ran is ignored.
  void end(Flow flow, uint64_t id, Time now);
  void levels(const Levels& levels, Time now);

  /// The format: "Trace Event Format" (Google), as a JSON object. What has not ended goes to the last time known.
  std::string json() const;

 private:
  struct Call {
    const char* what;
    Time begin, end;
    Of of;
    size_t thread;
  };
  struct Transfer {
    Flow flow;
    uint64_t id;
    Time begin, end;
    Of of;
  };

  size_t this_thread();

  const std::string path_;
  const int64_t passes_;
  int64_t first_pass_ = 0;
  int64_t opened_ = 0;
  int64_t ended_ = 0;
  Time began_;
  Time latest_;
  std::map<int64_t, size_t> threads_;  // the system's number -> in order of appearance
  std::vector<Call> calls_;
  std::vector<Transfer> transfers_;                          // that have ended
  std::map<std::pair<Flow, uint64_t>, Transfer> under_way_;  // and those that have not
  std::vector<std::pair<Time, Levels>> levels_;
};

}  // namespace ebbtide
