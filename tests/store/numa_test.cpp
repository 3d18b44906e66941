// Host memory by NUMA nodes, and host memory that is not what was asked for.
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/pinned_pool/topology_xml.h"
#include "tests/store/device_trainer.h"

namespace ebbtide::test {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::ThrowsMessage;

constexpr size_t kSize = 64 << 10;
constexpr Bytes kSlab = MiB(4);

/// Two sockets, with one of the pretend driver's two devices on each.
std::shared_ptr<const Topology> two_sockets() {
  std::string xml = text_of(EBBTIDE_TOPOLOGIES "/dual_socket_gpus.xml");
  replace_all(xml, "0000:11:00.0", "0000:a0:00.0");
  replace_all(xml, "0000:81:00.0", "0000:a1:00.0");
  SystemTree folder;
  folder.write("/machine.xml", xml);
  auto topology = Topology::from_xml(folder.root() + "/machine.xml");
  if (!topology) throw std::runtime_error(topology.failure().message);
  return std::make_shared<const Topology>(std::move(topology).value());
}

class NumaTest : public testing::Test {
 protected:
  /// `slabs`: that host memory has room for.
  void open(std::optional<NumaNode> numa, int slabs) {
    Options options;
    options.device_budget = Bytes(0);
    options.host_budget = kSlab * slabs;
    options.min_bytes = KiB(4);
    options.on_full = OnFull::kKeep;
    options.numa = numa;
    core_ = StoreCore::open(options, two_sockets());
    core_->set_warning_handler([this](const std::string& text) { warnings_.push_back(text); });
    for (int ordinal : {0, 1})
      trainers_.push_back(
          std::make_unique<DeviceTrainer>(*core_, driver_, ordinal, StoreCore::DeviceOptions{.own_thread = false}));
  }
  /// Each of these devices saves a tensor, which leaves, and reads it.
  void step(const std::vector<size_t>& devices) {
    std::shared_ptr<Pass> pass;
    std::vector<std::pair<size_t, DeviceTrainer::Saved>> saved;
    for (const size_t device : devices)
      saved.emplace_back(device, trainers_[device]->save(pass, 7 + saved.size(), kSize));
    core_->scope_ended(pass);
    host_ = core_->stats().host.bytes;
    for (; !saved.empty(); saved.pop_back()) (void)trainers_[saved.back().first]->use(saved.back().second);
    pass.reset();
    for (const auto& trainer : trainers_) {
      trainer->drain();
      EXPECT_EQ(trainer->wrong(), 0);
    }
  }

  std::shared_ptr<FakeCudaApi> driver_ = std::make_shared<FakeCudaApi>(std::vector<ChaosOptions>(2));
  std::shared_ptr<StoreCore> core_;
  std::vector<std::unique_ptr<DeviceTrainer>> trainers_;
  std::vector<std::string> warnings_;
  Bytes host_;  // slabs while all has left
};

TEST_F(NumaTest, EachDeviceHasTheMemoryNearestToIt) {
  open(std::nullopt, 2);
  step({0, 0});
  EXPECT_EQ(host_, kSlab);
  step({0, 1, 0, 1});
  EXPECT_EQ(host_, kSlab * 2);
  EXPECT_EQ(core_->stats().host_other_node, 0);
}

TEST_F(NumaTest, OneNodeForAllWhereOneIsNamed) {
  open(NumaNode{1}, 2);
  step({0, 1, 0, 1});
  EXPECT_EQ(host_, kSlab);
  EXPECT_EQ(core_->stats().host_other_node, 0);
}

TEST_F(NumaTest, NothingIsDividedWhereItIsOff) {
  open(kAnyNode, 2);
  step({0, 1});
  EXPECT_EQ(host_, kSlab * 2) << "one slab of all there is";
}

TEST_F(NumaTest, WhatLiesElsewhereSinceItsNodeIsFullIsCounted) {
  open(std::nullopt, 2);
  std::vector<size_t> devices{1, 1};  // what leaves does so when the next is packed
  devices.resize(2 + kSlab.count() / kSize + 8, 0);
  step(devices);
  EXPECT_EQ(host_, kSlab * 2);
  EXPECT_GE(core_->stats().host_other_node, 8);
  EXPECT_THAT(core_->report(), HasSubstr("blocks lie on another NUMA node"));
}

TEST_F(NumaTest, ANodeThatIsNotThereIsRefusedWithThoseThatAre) {
  EXPECT_THAT([&] { open(NumaNode{2}, 2); },
              ThrowsMessage<ConfigError>(AllOf(HasSubstr("numa=2"), HasSubstr("there are: 0 1"))));
}

TEST_F(NumaTest, HostMemoryThatCannotBePinnedIsSaidOnce) {
  open(std::nullopt, 2);
  driver_->fail("host_register", 0, CudaResult::kOutOfMemory);
  step({0});
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("is not pinned")));
  EXPECT_THAT(core_->stats().host_pageable_because, HasSubstr("CUDA_ERROR"));
  EXPECT_THAT(core_->report(), HasSubstr("not all of it is pinned"));
  step({0, 1});
  EXPECT_EQ(warnings_.size(), 1u);
}

}  // namespace
}  // namespace ebbtide::test
