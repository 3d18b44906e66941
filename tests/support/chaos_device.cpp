#include "tests/support/chaos_device.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>
#include <new>

namespace ebbtide::test {
namespace {

constexpr std::align_val_t kAlignment{512};  // as CUDA's allocators

}  // namespace

struct ChaosDevice::Memory {
  Memory(size_t size, StreamId owner)
      : bytes(size), stream(owner), data(static_cast<std::byte*>(::operator new(size, kAlignment))) {
    std::memset(data, static_cast<int>(kPoison), bytes);
  }
  ~Memory() { ::operator delete(data, kAlignment); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  const size_t bytes;
  const StreamId stream;
  std::byte* const data;
  std::string name;
  bool live = false;
};

/// Streams go on by themselves: whoever asks this often sees an event pass.
constexpr int kPatience = 12;

class ChaosDevice::PointEvent final : public Event {
 public:
  /// `last`: the ticket of the last access before it.
  PointEvent(const ChaosDevice* device, StreamPoint recorded, uint64_t last)
      : owner(device), point(std::move(recorded)), last_access(last) {}
  const ChaosDevice* const owner;
  const StreamPoint point;
  const uint64_t last_access;
  bool misplaced = false;
  std::shared_ptr<const double> time;  // of a timed event; 0 until it has passed
  mutable int asked = 0;
};

ChaosDevice::ChaosDevice(ChaosOptions options) : options_(options), streams_(options.seed, options.pace) {
  hosts_.push_back(HostAgent{next_agent_locked(), "program", {}, 0});
  copy_streams_ = {add_stream_locked("copy out"), add_stream_locked("copy in")};
}

ChaosDevice::~ChaosDevice() = default;

Result<DeviceMemory> ChaosDevice::memory() {
  const std::lock_guard lock(mutex_);
  if (lost_) return *lost_;
  return DeviceMemory{options_.capacity - Bytes(static_cast<int64_t>(live_bytes_)), options_.capacity};
}

StreamId ChaosDevice::copy_stream(Direction direction) noexcept {
  return copy_streams_[static_cast<size_t>(direction)];
}

Result<bool> ChaosDevice::capturing(StreamId stream) {
  const std::lock_guard lock(mutex_);
  if (lost_) return *lost_;
  if (auto refused = refuse_stream_locked(stream)) return *refused;
  return false;
}

Result<EventPtr> ChaosDevice::record(StreamId stream) {
  return record(stream, nullptr);
}

Result<EventPtr> ChaosDevice::record_timed(StreamId stream) {
  if (!options_.times_events) return Device::record_timed(stream);
  return record(stream, std::make_shared<double>(0));
}

Result<EventPtr> ChaosDevice::record(StreamId stream, const std::shared_ptr<double>& time) {
  const std::lock_guard lock(mutex_);
  if (auto refused = refuse_locked(Call::kRecord)) return *refused;
  if (auto refused = refuse_stream_locked(stream)) return *refused;
  if (omits_locked()) {
    auto nowhere = std::make_shared<PointEvent>(this, StreamPoint{agent(stream)}, last_access_[agent(stream)]);
    nowhere->misplaced = true;
    return EventPtr(std::move(nowhere));
  }
  std::function<void()> tick;
  if (time) tick = [this, time] { *time = now_ += 1e-5; };
  // A task of its own, so that an event on an idle stream is ordered after what the host has seen, and not already
  // passed.
  const StreamPoint point = streams_.push(agent(stream), host_locked().clock, std::move(tick));
  streams_.turn();
  auto event = std::make_shared<PointEvent>(this, point, last_access_[point.stream]);
  event->time = time;
  return EventPtr(std::move(event));
}

Result<double> ChaosDevice::seconds_between(const EventPtr& begin, const EventPtr& end) {
  if (!options_.times_events) return Device::seconds_between(begin, end);
  const std::lock_guard lock(mutex_);
  for (const EventPtr& event : {begin, end}) {
    const Result<const PointEvent*> known = known_locked(event);
    if (!known) return known.failure();
    const std::shared_ptr<const double>& time = known.value()->time;
    if (!time || *time == 0) return Failure{FailureCode::kInvalid, 0, "An event has no time, or none yet."};
  }
  return *known_locked(end).value()->time - *known_locked(begin).value()->time;
}

Status ChaosDevice::wait(StreamId stream, const EventPtr& event) {
  const std::lock_guard lock(mutex_);
  if (auto refused = refuse_locked(Call::kWait)) return *refused;
  if (auto refused = refuse_stream_locked(stream)) return *refused;
  const Result<const PointEvent*> known = known_locked(event);
  if (!known) return known.failure();
  const PointEvent& point = *known.value();
  if (omits_locked() || point.misplaced) omitted_[agent(stream)].emplace_back(point.point.stream, point.last_access);
  if (omits_locked()) return success();
  streams_.wait(agent(stream), host_locked().clock, point.point);
  streams_.turn();
  return success();
}

Result<bool> ChaosDevice::passed(const EventPtr& event) {
  const std::lock_guard lock(mutex_);
  if (auto refused = refuse_locked(Call::kPassed)) return *refused;
  const Result<const PointEvent*> known = known_locked(event);
  if (!known) return known.failure();
  const PointEvent& point = *known.value();
  if (omits_locked()) {
    note_unseen_locked(point);
    return true;
  }
  streams_.turn();
  if (!streams_.passed(point.point)) {
    if (++point.asked < kPatience) return false;
    streams_.drain(point.point);
  }
  see_locked(point);
  return true;
}

Status ChaosDevice::copy_rows(void* to, const void* from, const CopyRows& rows, Direction direction, StreamId stream) {
  const std::lock_guard lock(mutex_);
  if (auto refused = refuse_locked(Call::kCopy)) return *refused;
  if (auto refused = refuse_stream_locked(stream)) return *refused;
  if (rows.to_pitch < rows.row_bytes || rows.from_pitch < rows.row_bytes || rows.count == 0)
    return complain_locked("rows that are copied overlap, or are none");
  const size_t pitch = direction == Direction::kIn ? rows.to_pitch : rows.from_pitch;
  if (!allocated_locked(direction == Direction::kIn ? to : from, (rows.count - 1) * pitch + rows.row_bytes))
    return complain_locked("a copy of rows touches device memory that is not allocated");
  const auto move = [=](size_t first, size_t end) {
    for (size_t row = first; row < end; ++row)
      std::memmove(static_cast<std::byte*>(to) + row * rows.to_pitch,
                   static_cast<const std::byte*>(from) + row * rows.from_pitch, rows.row_bytes);
  };
  push_locked(stream, [=] { move(0, rows.count / 2); });
  const StreamPoint point = push_locked(stream, [=] { move(rows.count / 2, rows.count); });
  for (size_t row = 0; row < rows.count; ++row) {
    note_locked({static_cast<const std::byte*>(from) + row * rows.from_pitch, rows.row_bytes},
                RaceDetector::Kind::kRead, point, "copy");
    note_locked({static_cast<std::byte*>(to) + row * rows.to_pitch, rows.row_bytes}, RaceDetector::Kind::kWrite, point,
                "copy");
  }
  streams_.turn();
  return success();
}

Status ChaosDevice::copy(void* to, const void* from, size_t bytes, Direction direction, StreamId stream) {
  const std::lock_guard lock(mutex_);
  if (auto refused = refuse_locked(Call::kCopy)) return *refused;
  if (auto refused = refuse_stream_locked(stream)) return *refused;
  if (!allocated_locked(direction == Direction::kIn ? to : from, bytes))
    return complain_locked("a copy touches device memory that is not allocated");
  const size_t half = bytes / 2;  // two tasks: a copy is not done in one instant
  push_locked(stream, [=] { std::memmove(to, from, half); });
  const StreamPoint point = push_locked(stream, [=] {
    std::memmove(static_cast<std::byte*>(to) + half, static_cast<const std::byte*>(from) + half, bytes - half);
  });
  note_locked({from, bytes}, RaceDetector::Kind::kRead, point, "copy");
  note_locked({to, bytes}, RaceDetector::Kind::kWrite, point, "copy");
  streams_.turn();
  return success();
}

Status ChaosDevice::synchronize(const EventPtr& event) {
  const std::lock_guard lock(mutex_);
  if (lost_) return *lost_;
  const Result<const PointEvent*> known = known_locked(event);
  if (!known) return known.failure();
  const PointEvent& point = *known.value();
  if (omits_locked()) {
    note_unseen_locked(point);
    return success();
  }
  streams_.drain(point.point);
  see_locked(point);
  return success();
}

Status ChaosDevice::register_host(void* data, size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (auto refused = refuse_locked(Call::kRegisterHost)) return *refused;
  if (!registered_.emplace(reinterpret_cast<uintptr_t>(data), bytes).second)
    return complain_locked("host memory is registered twice");
  return success();
}

void ChaosDevice::unregister_host(void* data, size_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  const auto it = registered_.find(reinterpret_cast<uintptr_t>(data));
  if (it == registered_.end() || it->second != bytes) {
    complain_locked("host memory is unregistered that was not registered so");
    return;
  }
  registered_.erase(it);
  host_access_locked({data, bytes}, RaceDetector::Kind::kWrite, "unregister host memory");  // no copy may still use it
}

StreamId ChaosDevice::make_stream(const std::string& name) {
  const std::lock_guard lock(mutex_);
  return add_stream_locked(name);
}

void ChaosDevice::end_stream(StreamId stream) {
  const std::lock_guard lock(mutex_);
  if (!refuse_stream_locked(stream)) ended_.insert(stream);
}

Result<std::shared_ptr<std::byte>> ChaosDevice::allocate(size_t bytes, StreamId stream, const std::string& name) {
  const std::lock_guard lock(mutex_);
  if (auto refused = refuse_locked(Call::kAllocate)) return *refused;
  if (auto refused = refuse_stream_locked(stream)) return *refused;
  if (bytes == 0) return complain_locked("zero bytes of device memory are asked for");
  if (live_bytes_ + bytes > static_cast<size_t>(options_.capacity.count()))
    return Failure{FailureCode::kOverCapacity, 0, "The pretend device is out of memory."};
  Memory* memory = nullptr;
  if (std::vector<Memory*>& free = free_[{stream, bytes}]; !free.empty()) {
    memory = free.back();
    free.pop_back();
  } else {
    auto fresh = std::make_unique<Memory>(bytes, stream);
    memory = fresh.get();
    detector_.forget(memory->data, bytes);  // the program's heap had it before
    memory_.emplace(reinterpret_cast<uintptr_t>(memory->data), std::move(fresh));
  }
  memory->name = name;
  memory->live = true;
  live_bytes_ += bytes;
  peak_live_bytes_ = std::max(peak_live_bytes_, live_bytes_);
  if (options_.orders_allocations) {
    const StreamPoint point = push_locked(stream, nullptr);
    note_locked({memory->data, bytes}, RaceDetector::Kind::kWrite, point, "allocate " + name);
  }
  return std::shared_ptr<std::byte>(memory->data, [this, memory](std::byte*) noexcept { free(memory); });
}

void ChaosDevice::free(Memory* memory) noexcept {
  const std::lock_guard lock(mutex_);
  memory->live = false;
  live_bytes_ -= memory->bytes;
  free_[{memory->stream, memory->bytes}].push_back(memory);
  if (lost_) return;
  const StreamPoint point =
      push_locked(memory->stream, [memory] { std::memset(memory->data, static_cast<int>(kPoison), memory->bytes); });
  note_locked({memory->data, memory->bytes}, RaceDetector::Kind::kWrite, point, "free " + memory->name);
  streams_.turn();
}

Status ChaosDevice::launch(StreamId stream, const std::string& what, std::vector<Span> reads, std::vector<Span> writes,
                           std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  if (lost_) return *lost_;
  if (auto refused = refuse_stream_locked(stream)) return *refused;
  const StreamPoint point = push_locked(stream, std::move(work));
  for (const Span& span : reads) note_locked(span, RaceDetector::Kind::kRead, point, what);
  for (const Span& span : writes) note_locked(span, RaceDetector::Kind::kWrite, point, what);
  streams_.turn();
  return success();
}

void ChaosDevice::host_read(const void* data, size_t bytes, const std::string& what) {
  const std::lock_guard lock(mutex_);
  host_access_locked({data, bytes}, RaceDetector::Kind::kRead, what);
}

void ChaosDevice::host_write(const void* data, size_t bytes, const std::string& what) {
  const std::lock_guard lock(mutex_);
  host_access_locked({data, bytes}, RaceDetector::Kind::kWrite, what);
}

VectorClock ChaosDevice::host_moment() {
  const std::lock_guard lock(mutex_);
  return host_locked().clock;
}

void ChaosDevice::host_after(const VectorClock& moment) {
  const std::lock_guard lock(mutex_);
  host_locked().clock.join(moment);
}

ChaosDevice::AgentScope::AgentScope(ChaosDevice& device, const std::string& name) : device_(device) {
  const std::lock_guard lock(device_.mutex_);
  auto& hosts = device_.hosts_;
  auto it = std::ranges::find(hosts, name, &HostAgent::name);
  if (it == hosts.end()) {
    hosts.push_back(HostAgent{device_.next_agent_locked(), name, {}, 0});
    it = std::prev(hosts.end());
  }
  const auto index = static_cast<size_t>(it - hosts.begin());
  const auto [acting, first] = device_.acting_.try_emplace(std::this_thread::get_id(), index);
  if (!first) outer_ = std::exchange(acting->second, index);
}

ChaosDevice::AgentScope::~AgentScope() {
  const std::lock_guard lock(device_.mutex_);
  if (outer_) {
    device_.acting_[std::this_thread::get_id()] = *outer_;
  } else {
    device_.acting_.erase(std::this_thread::get_id());
  }
}

ChaosDevice::Omission::Omission(ChaosDevice& device) : device_(device) {
  const std::lock_guard lock(device_.mutex_);
  device_.omitting_.insert(std::this_thread::get_id());
}

ChaosDevice::Omission::~Omission() {
  const std::lock_guard lock(device_.mutex_);
  device_.omitting_.erase(std::this_thread::get_id());
}

EventPtr ChaosDevice::misplaced(const EventPtr& meant, const EventPtr& earlier) {
  const std::lock_guard lock(mutex_);
  if (!meant) return nullptr;
  const Result<const PointEvent*> at = known_locked(meant);
  if (!at) return nullptr;
  StreamPoint point{at.value()->point.stream};
  if (earlier)
    if (const Result<const PointEvent*> known = known_locked(earlier); known) point = known.value()->point;
  auto event = std::make_shared<PointEvent>(this, std::move(point), at.value()->last_access);
  event->misplaced = true;
  return event;
}

EventPtr ChaosDevice::end_of(StreamId stream) {
  const std::lock_guard lock(mutex_);
  return std::make_shared<PointEvent>(this, streams_.last(agent(stream)), last_access_[agent(stream)]);
}

void ChaosDevice::should_come_after(StreamId stream, const EventPtr& event) {
  const std::lock_guard lock(mutex_);
  if (const Result<const PointEvent*> known = known_locked(event); known)
    omitted_[agent(stream)].emplace_back(known.value()->point.stream, known.value()->last_access);
}

void ChaosDevice::should_have_passed(const EventPtr& event) {
  const std::lock_guard lock(mutex_);
  if (const Result<const PointEvent*> known = known_locked(event); known) note_unseen_locked(*known.value());
}

bool ChaosDevice::missed_an_order() const {
  const std::lock_guard lock(mutex_);
  return missed_an_order_;
}

void ChaosDevice::fail(Call call, int skip, Failure failure) {
  const std::lock_guard lock(mutex_);
  faults_.insert_or_assign(call, std::pair(skip, std::move(failure)));
}

void ChaosDevice::forget_faults() {
  const std::lock_guard lock(mutex_);
  faults_.clear();
}

void ChaosDevice::lose(Failure failure) {
  const std::lock_guard lock(mutex_);
  lost_ = std::move(failure);
}

std::set<std::string> ChaosDevice::races() const {
  const std::lock_guard lock(mutex_);
  return detector_.races();
}

std::vector<std::string> ChaosDevice::misuse() const {
  const std::lock_guard lock(mutex_);
  return misuse_;
}

Bytes ChaosDevice::live_bytes() const {
  const std::lock_guard lock(mutex_);
  return Bytes(static_cast<int64_t>(live_bytes_));
}

Bytes ChaosDevice::peak_live_bytes() const {
  const std::lock_guard lock(mutex_);
  return Bytes(static_cast<int64_t>(peak_live_bytes_));
}

uint64_t ChaosDevice::schedule() const {
  const std::lock_guard lock(mutex_);
  return streams_.schedule();
}

void ChaosDevice::run_all() {
  const std::lock_guard lock(mutex_);
  if (!lost_) streams_.drain_all();
}

// No stream of ours gives an agent that is none.
AgentId ChaosDevice::agent(StreamId stream) const noexcept {
  const uint64_t number = static_cast<uint64_t>(stream) - options_.streams_above - 1;
  return AgentId{static_cast<uint32_t>(std::min<uint64_t>(number, std::numeric_limits<uint32_t>::max()))};
}

StreamId ChaosDevice::add_stream_locked(const std::string& name) {
  const AgentId id = next_agent_locked();
  streams_.add(id);
  stream_names_.emplace(id, name);
  return StreamId{options_.streams_above + static_cast<uint64_t>(id) + 1};  // 0 is kHostStream
}

ChaosDevice::HostAgent& ChaosDevice::host_locked() {
  const auto self = std::this_thread::get_id();
  const auto it = acting_.find(self);
  if (it != acting_.end()) return hosts_[it->second];
  if (!options_.separate_threads) return hosts_.front();
  acting_.emplace(self, hosts_.size());
  hosts_.push_back(HostAgent{next_agent_locked(), "thread " + std::to_string(hosts_.size()), {}, 0});
  return hosts_.back();
}

std::optional<Failure> ChaosDevice::refuse_locked(Call call) {
  if (lost_) return lost_;
  const auto it = faults_.find(call);
  if (it == faults_.end() || it->second.first-- > 0) return std::nullopt;
  const Failure failure = it->second.second;
  faults_.erase(it);
  if ((call == Call::kRecord || call == Call::kPassed) && means_lost(failure.code))
    lost_ = failure;  // as Device has it
  return failure;
}

std::optional<Failure> ChaosDevice::refuse_stream_locked(StreamId stream) {
  if (stream == kHostStream || !streams_.has(agent(stream)))
    return complain_locked("there is no stream " + std::to_string(static_cast<uint64_t>(stream)));
  if (ended_.contains(stream)) return complain_locked("the stream \"" + stream_names_[agent(stream)] + "\" has ended");
  return std::nullopt;
}

Result<const ChaosDevice::PointEvent*> ChaosDevice::known_locked(const EventPtr& event) {
  const auto* point = dynamic_cast<const PointEvent*>(event.get());
  if (point == nullptr || point->owner != this) return complain_locked("an event is not one of this device");
  return point;
}

// What this thread does from now on comes after the event.
void ChaosDevice::see_locked(const PointEvent& event) {
  host_locked().clock.join(event.point.clock);
  if (event.misplaced) note_unseen_locked(event);
}

void ChaosDevice::note_unseen_locked(const PointEvent& event) {
  if (host_locked().clock[event.point.stream] < event.last_access) missed_an_order_ = true;
}

Failure ChaosDevice::complain_locked(std::string what) {
  misuse_.push_back(what);
  return Failure{FailureCode::kInvalid, 0, "Misuse of the device: " + std::move(what) + "."};
}

bool ChaosDevice::allocated_locked(const void* data, size_t bytes) const {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  auto it = memory_.upper_bound(begin);
  if (it == memory_.begin()) return false;
  const Memory& memory = *std::prev(it)->second;
  return memory.live && begin + bytes <= reinterpret_cast<uintptr_t>(memory.data) + memory.bytes;
}

StreamPoint ChaosDevice::push_locked(StreamId stream, std::function<void()> work) {
  if (!options_.moves_bytes) work = nullptr;
  return streams_.push(agent(stream), host_locked().clock, std::move(work));
}

void ChaosDevice::note_locked(Span span, RaceDetector::Kind kind, const StreamPoint& point, const std::string& what) {
  for (const auto& [stream, last_access] : std::exchange(omitted_[point.stream], {}))
    if (point.clock[stream] < last_access) missed_an_order_ = true;
  last_access_[point.stream] = point.ticket;
  detector_.note(span.data, span.bytes, kind, {point.stream, point.ticket, what + " on " + stream_names_[point.stream]},
                 point.clock);
}

void ChaosDevice::host_access_locked(Span span, RaceDetector::Kind kind, const std::string& what) {
  HostAgent& host = host_locked();
  host.clock.set(host.id, ++host.steps);
  detector_.note(span.data, span.bytes, kind, {host.id, host.steps, what + " by " + host.name}, host.clock);
  streams_.turn();
}

}  // namespace ebbtide::test
