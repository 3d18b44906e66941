#include "tests/support/virtual_streams.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace ebbtide::test {

VirtualStreams::VirtualStreams(uint64_t seed, std::optional<Pace> pace) : random_(seed), pace_(pace) {}

void VirtualStreams::add(AgentId agent) {
  streams_.push_back(Stream{.agent = agent});
  draw_pace(streams_.back());
}

bool VirtualStreams::has(AgentId agent) const noexcept {
  return std::ranges::any_of(streams_, [&](const Stream& s) { return s.agent == agent; });
}

StreamPoint VirtualStreams::push(AgentId agent, const VectorClock& host, std::function<void()> work) {
  return push(agent, host, Task{std::move(work), std::nullopt});
}

void VirtualStreams::wait(AgentId agent, const VectorClock& host, const StreamPoint& point) {
  push(agent, host, Task{nullptr, point});
  stream(agent).clock.join(point.clock);
}

StreamPoint VirtualStreams::last(AgentId agent) const {
  const Stream& s = stream(agent);
  return {agent, s.pushed, s.clock};
}

bool VirtualStreams::passed(const StreamPoint& point) const {
  return stream(point.stream).done >= point.ticket;
}

// Terminates: a wait names only tasks that were enqueued before it.
void VirtualStreams::drain(const StreamPoint& point) {
  Stream& s = stream(point.stream);
  while (s.done < point.ticket) {
    if (ready(s)) {
      run_front(s);
    } else {
      const StreamPoint blocker = *s.tasks.front().after;
      drain(blocker);
    }
    turn();
  }
}

void VirtualStreams::drain_all() {
  for (const Stream& s : streams_) drain(last(s.agent));
}

void VirtualStreams::turn() {
  if (streams_.empty()) return;
  if (!pace_ && random_() % 64 == 0) draw_pace(streams_[random_() % streams_.size()]);
  const size_t first = random_() % streams_.size();
  for (bool again = true; again;) {
    again = false;
    for (size_t i = 0; i < streams_.size(); ++i) {
      Stream& s = streams_[(first + i) % streams_.size()];
      while (ready(s) && s.pace != Pace::kLazy && (s.pace == Pace::kEager || random_() % 100 < s.chance)) {
        run_front(s);
        again |= s.pace == Pace::kEager;  // another eager stream may have waited for it
      }
    }
  }
}

VirtualStreams::Stream& VirtualStreams::stream(AgentId agent) {
  return const_cast<Stream&>(std::as_const(*this).stream(agent));
}

const VirtualStreams::Stream& VirtualStreams::stream(AgentId agent) const {
  const auto it = std::ranges::find(streams_, agent, &Stream::agent);
  if (it == streams_.end()) throw std::invalid_argument("VirtualStreams: no such stream");
  return *it;
}

StreamPoint VirtualStreams::push(AgentId agent, const VectorClock& host, Task task) {
  Stream& s = stream(agent);
  s.tasks.push_back(std::move(task));
  s.clock.join(host);
  s.clock.set(agent, ++s.pushed);
  return {agent, s.pushed, s.clock};
}

bool VirtualStreams::ready(const Stream& s) const {
  return !s.tasks.empty() && (!s.tasks.front().after || passed(*s.tasks.front().after));
}

void VirtualStreams::run_front(Stream& s) {
  const Task task = std::move(s.tasks.front());
  s.tasks.pop_front();
  if (task.work) task.work();
  ++s.done;
  schedule_ = (schedule_ ^ static_cast<uint64_t>(s.agent)) * 0x100000001b3;
}

void VirtualStreams::draw_pace(Stream& s) {
  s.pace = pace_ ? *pace_ : static_cast<Pace>(random_() % 3);
  s.chance = 1 + static_cast<unsigned>(random_() % 99);
}

}  // namespace ebbtide::test
