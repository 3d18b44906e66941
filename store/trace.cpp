#include <ebbtide/store/json.h>
#include <ebbtide/store/op_name.h>
#include <ebbtide/store/trace.h>

#include <unistd.h>

#include <algorithm>

namespace ebbtide {
namespace {

// As Perfetto groups them: a process for callers' threads, one for what runs beside them.
constexpr int kCallers = 1;
constexpr int kTransfers = 2;

const char* name_of(Trace::Flow flow) {
  switch (flow) {
    case Trace::Flow::kForward:
      return "forward";
    case Trace::Flow::kBackward:
      return "backward";
    case Trace::Flow::kWrite:
      return "disk write";
    case Trace::Flow::kRead:
      return "disk read";
    case Trace::Flow::kCopyOut:
      return "copy out";
    case Trace::Flow::kCopyIn:
      return "copy in";
  }
  return "?";
}

Json arguments_of(const Trace::Of& of) {
  Json arguments = Json::object();
  if (of.record != 0) arguments["record"] = of.record;
  if (of.bytes > Bytes(0)) arguments["bytes"] = of.bytes.count();
  if (of.op != nullptr) arguments["op"] = op_name(of.op);
  if (of.region != nullptr) arguments["region"] = of.region;
  if (of.cause != nullptr) arguments["for"] = of.cause;
  return arguments;
}

Json name_event(const char* what, int process, size_t thread, const std::string& name) {
  return {{"ph", "M"}, {"name", what}, {"pid", process}, {"tid", thread}, {"args", {{"name", name}}}};
}

}  // namespace

void Trace::pass_opened(int64_t number, Time now) {
  if (complete()) return;
  if (opened_ == 0) {
    began_ = now;
    first_pass_ = number;
  }
  ++opened_;
  begin(Flow::kForward, static_cast<uint64_t>(number), now, {});
}

void Trace::pass_ended(int64_t number, Time now) {
  if (!running()) return;
  end(Flow::kForward, static_cast<uint64_t>(number), now);
  end(Flow::kBackward, static_cast<uint64_t>(number), now);
  if (number >= first_pass_) ++ended_;
}

void Trace::call(const char* what, Time begin, Time end, const Of& of) {
  if (!running()) return;
  latest_ = std::max(latest_, end);
  calls_.push_back({what, std::max(begin, began_), end, of, this_thread()});
}

void Trace::begin(Flow flow, uint64_t id, Time now, const Of& of) {
  if (!running()) return;
  latest_ = std::max(latest_, now);
  under_way_.insert_or_assign({flow, id}, Transfer{flow, id, now, now, of});
}

void Trace::end(Flow flow, uint64_t id, Time now) {
  if (!running()) return;
  const auto found = under_way_.find({flow, id});
  if (found == under_way_.end()) return;
  latest_ = std::max(latest_, now);
  found->second.end = now;
  transfers_.push_back(found->second);
  under_way_.erase(found);
}

void Trace::levels(const Levels& levels, Time now) {
  if (running()) levels_.emplace_back(now, levels);
}

size_t Trace::this_thread() {
  return threads_.try_emplace(::gettid(), threads_.size() + 1).first->second;
}

std::string Trace::json() const {
  std::string text = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[";
  bool first = true;
  const auto add = [&](const Json& event) {
    text += first ? "\n" : ",\n";
    text += text_of(event);
    first = false;
  };
  const auto micros = [&](Time time) { return std::chrono::duration<double, std::micro>(time - began_).count(); };

  add(name_event("process_name", kCallers, 0, "callers"));
  add(name_event("process_name", kTransfers, 0, "passes and transfers"));
  for (const auto& [system, number] : threads_)
    add(name_event("thread_name", kCallers, number, "thread " + std::to_string(system)));
  for (const Call& call : calls_)
    add({{"ph", "X"},
         {"name", call.what},
         {"cat", "call"},
         {"pid", kCallers},
         {"tid", call.thread},
         {"ts", micros(call.begin)},
         {"dur", micros(call.end) - micros(call.begin)},
         {"args", arguments_of(call.of)}});
  std::vector<Transfer> transfers = transfers_;
  for (const auto& [key, transfer] : under_way_) {
    transfers.push_back(transfer);
    transfers.back().end = std::max(latest_, transfer.begin);
  }
  for (const Transfer& transfer : transfers) {
    Json event = {{"ph", "b"},
                  {"name", name_of(transfer.flow)},
                  {"cat", transfer.flow <= Flow::kBackward ? "pass" : "transfer"},
                  {"pid", kTransfers},
                  {"tid", 0},
                  {"id", transfer.id},
                  {"ts", micros(transfer.begin)},
                  {"args", arguments_of(transfer.of)}};
    add(event);
    event["ph"] = "e";
    event["ts"] = micros(transfer.end);
    event["args"] = Json::object();
    add(event);
  }
  for (const auto& [time, levels] : levels_)
    add({{"ph", "C"},
         {"name", "bytes"},
         {"pid", kTransfers},
         {"ts", micros(time)},
         {"args",
          {{"device", levels.device.count()}, {"host", levels.host.count()}, {"spill", levels.spill.count()}}}});
  return text + "\n]}\n";
}

}  // namespace ebbtide
