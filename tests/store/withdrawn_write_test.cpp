// Records that die while their writes wait for a disk that is in no hurry.
#include <ebbtide/store/store_core.h>

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/store/fake_storage.h"
#include "tests/store/slow_disks.h"

namespace ebbtide::test {
namespace {

/// A framework's, whose end may run the framework's code.
class ForeignStorage final : public DeviceStorage {
 public:
  explicit ForeignStorage(Memory memory) : memory_(std::move(memory)) {}
  std::byte* data() const noexcept override { return memory_.data(); }
  Bytes bytes() const noexcept override { return Bytes(static_cast<int64_t>(memory_.bytes())); }
  int64_t references() const noexcept override { return memory_.owners(); }
  bool plain() const noexcept override { return false; }
  const void* identity() const noexcept override { return memory_.identity(); }

 private:
  const Memory memory_;
};

TEST(WithdrawnWrite, WhatDiesBeforeItsWriteBeganIsFreeAtOnce) {
  std::string folder = testing::TempDir() + "ebbtide-withdrawn-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  SlowDisks disks(512 << 10);  // two seconds a request, in which its thread hears nothing
  Options options;
  options.device_budget = MiB(64);
  options.spill_to = {folder};
  options.min_bytes = KiB(4);
  auto core = StoreCore::open(options);
  std::shared_ptr<Pass> pass;
  std::vector<std::shared_ptr<Record>> records;
  const auto save = [&](size_t bytes) {
    const Memory memory(bytes);
    memory.fill(bytes);
    std::shared_ptr<DeviceStorage> storage;
    records.push_back(
        core->pack(pass, whole(memory), [&] { return storage = std::make_shared<ForeignStorage>(memory); }).record);
    return std::weak_ptr<DeviceStorage>(storage);
  };
  (void)save(24 << 20);  // more than the disk is given at once
  const auto watch = save(1 << 20);
  // Half of the budget is to have copies on the disk.
  for (int i = 0; i < 38 && core->stats().spill.bytes < MiB(24.5); ++i) (void)save(1 << 20);
  const Bytes on_their_way = core->stats().spill.bytes;
  ASSERT_GE(on_their_way, MiB(24.5));
  ASSERT_FALSE(watch.expired());
  records.erase(records.begin() + 1);
  EXPECT_TRUE(watch.expired());
  EXPECT_LE(core->stats().spill.bytes, on_their_way - MiB(0.9));
  disks.set_speed(1e12);
  records.clear();
  pass.reset();
  core->close();
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace ebbtide::test
