#include "tests/store/scarce_memory.h"

#include <ebbtide/pinned_pool/capacity.h>

#include <atomic>
#include <limits>

#define ROOM "_ZNK7ebbtide11pinned_pool8Capacity4roomEv"

namespace ebbtide {
namespace pinned_pool {

Room real_room(const Capacity* capacity) asm("__real_" ROOM);
Room scarce_room(const Capacity* capacity) asm("__wrap_" ROOM);

}  // namespace pinned_pool

namespace test {
namespace {

constexpr int64_t kPlenty = std::numeric_limits<int64_t>::max();
std::atomic<int64_t> left_at_most{kPlenty};
std::atomic<int64_t> times_asked{0};

}  // namespace

ScarceMemory::ScarceMemory(Bytes left) {
  times_asked = 0;
  set_left(left);
}

ScarceMemory::~ScarceMemory() {
  left_at_most = kPlenty;
}

void ScarceMemory::set_left(Bytes left) {
  left_at_most = left.count();
}

int64_t ScarceMemory::asked() const {
  return times_asked;
}

}  // namespace test

pinned_pool::Room pinned_pool::scarce_room(const Capacity* capacity) {
  Room room = real_room(capacity);
  ++test::times_asked;
  if (const Bytes most(test::left_at_most.load()); most < room.left) room.left = most;
  return room;
}

}  // namespace ebbtide
