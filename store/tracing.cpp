// What a store tells its trace.
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/store/text_file.h>

#include <exception>
#include <string>
#include <utility>

namespace ebbtide {

void StoreCore::trace(const std::string& path, int64_t passes) {
  if (passes < 1)
    throw ConfigError("save_trace: steps=" + std::to_string(passes) + " is not valid: accepted is 1 or more");
  auto trace = std::make_unique<Trace>(path, passes);
  // Now, and not after the passes: a path that cannot be written to is an error of this call.
  const Status written = write_text_file(path, trace->json());
  if (!written.ok()) throw ConfigError("save_trace: cannot write " + path + ": " + written.failure().message);
  std::lock_guard lock(mutex_);
  if (trace_) throw ConfigError("save_trace: a trace is under way, to " + trace_->path());
  trace_ = std::move(trace);
}

Trace::Of StoreCore::traced(const Record& record) noexcept {
  return {.bytes = record.bytes(),
          .op = record.op_,
          .region = record.label_ != nullptr ? record.label_->name.c_str() : nullptr,
          .record = record.id_};
}

/// REQUIRES: the budgets hold, as they do at the end of each call.
void StoreCore::trace_call_locked(const char* what, Trace::Time begin, const Trace::Of& of) {
  const auto now = std::chrono::steady_clock::now();
  trace_->call(what, begin, now, of);
  trace_levels_locked(now);
}

void StoreCore::trace_begin_locked(Trace::Flow flow, const Record& record) {
  trace_->begin(flow, record.id_, std::chrono::steady_clock::now(), traced(record));
}

void StoreCore::trace_end_locked(Trace::Flow flow, const Record& record) {
  trace_->end(flow, record.id_, std::chrono::steady_clock::now());
}

/// Of CPU tensors states tell all. Of an accelerator's they tell when it leaves; its copies' ends, and what its disk
/// does, are told where they are.
void StoreCore::trace_transfer_locked(const Record& record, RecordState next) {
  using enum RecordState;
  const bool host = record.tier_ != nullptr && !record.tier_->link;
  const auto now = std::chrono::steady_clock::now();
  const Trace::Flow out = host ? Trace::Flow::kWrite : Trace::Flow::kCopyOut;
  if (next == kLeaving) trace_->begin(out, record.id_, now, traced(record));
  if (record.state_ == kLeaving && (host || next == kResident)) trace_->end(out, record.id_, now);
  if (host && next == kReturning) trace_->begin(Trace::Flow::kRead, record.id_, now, traced(record));
  if (host && record.state_ == kReturning) trace_->end(Trace::Flow::kRead, record.id_, now);
  if (next == kDead)
    for (const auto flow : {Trace::Flow::kWrite, Trace::Flow::kRead, Trace::Flow::kCopyOut, Trace::Flow::kCopyIn})
      trace_->end(flow, record.id_, now);
}

void StoreCore::trace_levels_locked(Trace::Time now) {
  Trace::Levels levels;
  for (const DeviceTier& tier : tiers_) levels.device += tier.held();
  levels.host = host_bytes_;
  if (spill_) levels.spill = spill_->stats().bytes;
  trace_->levels(levels, now);
}

/// On a caller's thread. What goes wrong is a warning: no call of the caller's concerns it any more.
void StoreCore::write_trace(EvenUnfinished even_unfinished) noexcept {
  std::unique_ptr<Trace> done;
  {
    std::lock_guard lock(mutex_);
    if (!trace_ || (!trace_->complete() && even_unfinished == EvenUnfinished::kNo)) return;
    done = std::move(trace_);
  }
  try {
    const Status written = write_text_file(done->path(), done->json());
    if (!written.ok()) warn("save_trace: cannot write " + done->path() + ": " + written.failure().message);
  } catch (const std::exception& error) {
    warn("save_trace: cannot write " + done->path() + ": " + error.what());
  }
}

}  // namespace ebbtide
