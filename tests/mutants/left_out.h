// What weave.py writes into the sources: each line that orders or holds, with a switch around it.
#pragma once

#include <ebbtide/transfer/device.h>
#include <ebbtide/transfer/device_storage.h>

#include <memory>
#include <utility>

#include "tests/mutants/ordered_mutex.h"
#include "tests/mutants/world.h"

namespace ebbtide::mutants {

inline bool left_out(const char* name) noexcept {
  return World::now() != nullptr && World::now()->left_out(name);
}
inline void note_executed() noexcept {
  World::now()->note_executed();
}

inline const void* address_of(const DeviceStorage& storage) {
  return storage.data();
}
template <class HostCopy>
const void* address_of(const HostCopy& memory) {
  return memory.pieces().front().data;
}
/// `job` touches memory until it has finished.
template <class Job>
void begin_transfer(const void* transfer, const Job& job) {
  World::now()->begin_transfer(transfer, [weak = std::weak_ptr(job)]() -> EventPtr {
    const auto alive = weak.lock();
    return alive && !alive->finished() ? alive->event() : nullptr;
  });
}
inline void end_transfer(const void* transfer) {
  if (World::now() != nullptr) World::now()->end_transfer(transfer);
}

/// A call of the device: left out, it has no effect there.
template <class Call>
auto omitting(const char* name, Call&& call) -> decltype(call()) {
  if (!left_out(name)) return call();
  const test::ChaosDevice::Omission omission(World::now()->device());
  return call();
}

/// A condition that keeps something from being done: left out, it never holds.
inline bool stops(const char* name, bool condition) {
  if (!left_out(name)) return condition;
  if (condition) note_executed();
  return false;
}
/// A condition without which something is not done: left out, it always holds.
inline bool allows(const char* name, bool condition) {
  if (!left_out(name)) return condition;
  if (!condition) note_executed();
  return true;
}

/// The same, where what is done next decides whether it matters.
inline bool passes_over(const char* name, bool condition) {
  if (!left_out(name)) return condition;
  if (!condition) World::now()->note_passed_over();
  return true;
}
/// A condition that keeps memory from being given back, or read by a disk, under `job`.
template <class Memory, class Job>
bool stops_end(const char* name, bool condition, const Memory& memory, const Job& job) {
  if (!left_out(name)) return condition;
  if (condition && memory && job) {
    begin_transfer(&*job, job);
    World::now()->watch(address_of(*memory), &*job);
  }
  return false;
}
/// A condition that keeps `stream` from using what `job` fills.
template <class Job>
bool stops_use(const char* name, bool condition, StreamId stream, const Job& job) {
  if (!left_out(name)) return condition;
  if (condition && job && job->event()) World::now()->device().should_come_after(stream, job->event());
  return false;
}
/// A condition that keeps a job from ending, and so from giving back what it alone holds, before its copies have passed.
inline bool stops_job(const char* name, bool condition, const std::shared_ptr<void>& alone, StreamId stream) {
  if (!left_out(name)) return condition;
  if (condition && alone.use_count() == 1)
    World::now()->device().should_have_passed(World::now()->device().end_of(stream));
  return false;
}

/// An event that is to be waited for: left out, it is one that orders nothing.
inline EventPtr waited_for(const char* name, EventPtr event) {
  return left_out(name) ? World::now()->device().misplaced(event) : event;
}
/// The event that takes another's place: left out, the other stays.
inline EventPtr replaced(const char* name, const EventPtr& event, const EventPtr& earlier) {
  return left_out(name) && earlier ? World::now()->device().misplaced(event, earlier) : event;
}

/// A reference that the completion of a disk's transfer holds. Left out, it holds nothing, and finds at the end whether
/// others did.
template <class T>
class Held {
 public:
  Held(const char* name, std::shared_ptr<T> memory) {
    if (left_out(name))
      weak_ = memory;
    else
      strong_ = memory;
    given_ = memory != nullptr;
  }
  operator std::shared_ptr<T>() {  // NOLINT(google-explicit-constructor): where the product hands its reference on
    look();
    return strong_ ? std::move(strong_) : weak_.lock();
  }
  void reset() {
    look();
    strong_.reset();
  }

 private:
  void look() {
    if (given_ && !strong_ && weak_.expired() && World::now()->disk_touched()) note_executed();
    given_ = false;
  }
  std::shared_ptr<T> strong_;
  std::weak_ptr<T> weak_;
  bool given_ = false;
};
template <class T>
Held<T> held(const char* name, const std::shared_ptr<T>& memory) {
  return Held<T>(name, memory);
}

/// The only reference to host memory: left out, that memory ends here, as far as the detector is told.
template <class HostCopy>
std::shared_ptr<HostCopy> held_alone(const char* name, std::shared_ptr<HostCopy> memory) {
  if (left_out(name)) {
    for (const auto& piece : memory->pieces()) World::now()->memory_ends(piece.data, piece.bytes);
    note_executed();
  }
  return memory;
}

/// A reference in `slot` for as long as `transfer` lasts.
template <class T>
void let_go(const char* name, const void* transfer, std::shared_ptr<T>& slot) {
  if (!left_out(name)) return;
  World::now()->watch(address_of(*slot), transfer);
  slot = nullptr;
}

/// What a lane keeps alive: left out, its contents end with the last of the other references.
template <class T>
struct Forsaken {
  std::shared_ptr<T> kept;  // the shell, which the completion goes by
  const char* name;
  void operator()(T* passage) {
    if (passage->memory) let_go(name, passage, passage->memory);
    if (passage->storage) let_go(name, passage, passage->storage);
  }
};
template <class T>
std::shared_ptr<T> forsaken(const char* name, std::shared_ptr<T> passage) {
  T* const raw = passage.get();
  return left_out(name) ? std::shared_ptr<T>(raw, Forsaken<T>{std::move(passage), name}) : passage;
}
template <class T>
std::shared_ptr<T> kept(const std::shared_ptr<T>& passage) {
  const auto* deleter = std::get_deleter<Forsaken<T>>(passage);
  return deleter != nullptr ? deleter->kept : passage;
}

/// A reference that is there in case the stream cannot be made to wait for `job`.
template <class T, class Job>
std::shared_ptr<T> parked(const char* name, std::shared_ptr<T> storage, const Job& job) {
  if (!left_out(name) || !storage) return storage;
  begin_transfer(&*job, job);
  World::now()->watch(address_of(*storage), &*job);
  return nullptr;
}

inline void memory_begins() {
  if (World::now() != nullptr) World::now()->memory_begins();
}
inline void memory_unmapped() {
  if (World::now() != nullptr) World::now()->memory_unmapped();
}
inline void memory_ends(const void* data, size_t bytes) {
  if (World::now() != nullptr) World::now()->memory_ends(data, bytes);
}

/// A stream waits for an event of the driver's: is it still the point that it was recorded for?
inline void handle_begins(const void* holder, const void* handle) {
  if (World* const world = World::now(); world != nullptr && world->recorded)
    world->handle_begins(holder, world->recorded(handle));
}
inline void handle_ends(const void* holder) {
  if (World::now() != nullptr) World::now()->handle_ends(holder);
}
/// Takes what became of the wait.
class WaitsForHandle {
 public:
  WaitsForHandle(const char* name, StreamId stream, const void* holder)
      : name_(name), stream_(stream), holder_(holder) {}
  Status operator=(Status waiting) {  // NOLINT(misc-unconventional-assign-operator)
    if (left_out(name_) && waiting.ok())
      if (const EventPtr meant = World::now()->meant_by(holder_))
        World::now()->device().should_come_after(stream_, meant);
    return waiting;
  }

 private:
  const char* const name_;
  const StreamId stream_;
  const void* const holder_;
};

inline Bytes cap() {
  return World::now() != nullptr ? World::now()->cap : MiB(64);
}
/// A record's producer has no event: what a copy will have to come after.
inline void note_produced(const void* record, StreamId stream) {
  World::now()->produced[record] = World::now()->device().end_of(stream);
}
inline Result<EventPtr> nothing_after(const void* record) {
  return World::now()->device().misplaced(World::now()->produced[record]);
}

}  // namespace ebbtide::mutants
