#include <ebbtide/pinned_pool/topology.h>
#include <ebbtide/store/doctor.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/nvme_ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "tests/pinned_pool/topology_xml.h"
#include "tests/store/device_trainer.h"

namespace ebbtide::test {
namespace {

using testing::Contains;
using testing::Each;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

/// A machine on which nothing is held back, until a test holds it back.
class DoctorTest : public testing::Test {
 protected:
  DoctorTest() {
    machine_.machine(4096, 2048);
    machine_.write("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
    machine_.write("/proc/self/limits",
                   "Limit                     Soft Limit           Hard Limit           Units     \n"
                   "Max locked memory         unlimited            unlimited            bytes     \n");
    EXPECT_EQ(::setenv("MALLOC_MMAP_THRESHOLD_", "131072", 1), 0);
  }
  ~DoctorTest() override { (void)::unsetenv("MALLOC_MMAP_THRESHOLD_"); }

  DoctorOptions options(std::vector<std::string> folders = {}) const {
    return {.folders = std::move(folders), .each_way = std::chrono::milliseconds(1), .system_root = machine_.root()};
  }
  static std::string advice(const Diagnosis& found) {
    std::string all;
    for (const std::string& sentence : found.advice) all += sentence + "\n";
    return all;
  }

  SystemTree machine_;
  TemporaryFolder folder_{"ebbtide-doctor-"};
};

TEST_F(DoctorTest, MeasuresAFolderAndLeavesNothingThere) {
  const Diagnosis found = doctor(options({folder_.path()}));
  ASSERT_EQ(found.folders.size(), 1u);
  const Diagnosis::Folder& folder = found.folders[0];
  EXPECT_EQ(folder.refused, "");
  ASSERT_TRUE(folder.speed);
  EXPECT_GT(folder.speed->write, 0);
  EXPECT_GT(folder.speed->read, 0);
  EXPECT_GT(folder.free, Bytes(0));
  EXPECT_THAT(folder.description, HasSubstr(folder_.path()));
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
  EXPECT_THAT(to_text(found), HasSubstr("  writes "));
}

TEST_F(DoctorTest, AFolderThatIsNotThereIsSaid) {
  const Diagnosis found = doctor(options({"/nowhere/at/all"}));
  EXPECT_THAT(found.folders.at(0).refused, HasSubstr("/nowhere/at/all"));
  EXPECT_FALSE(found.folders[0].speed);
  EXPECT_THAT(advice(found), HasSubstr("/nowhere/at/all"));
}

TEST_F(DoctorTest, TellsHowWornADriveIs) {
  struct stat status {};
  ASSERT_EQ(::stat(folder_.path().c_str(), &status), 0);
  machine_.write("/sys/dev/block/" + std::to_string(major(status.st_dev)) + ":" + std::to_string(minor(status.st_dev)) +
                     "/slaves/nvme3n1/dev",
                 "259:0\n");
  DoctorOptions asked = options({folder_.path()});
  asked.command_drive = [](const std::string&, nvme_passthru_cmd& command) {
    auto* log = reinterpret_cast<unsigned char*>(static_cast<uintptr_t>(command.addr));
    log[5] = 93;
    log[48 + 3] = 16;  // 2^28 units of 512,000 bytes
    return 0;
  };
  Diagnosis found = doctor(asked);
  EXPECT_THAT(to_text(found),
              HasSubstr("  nvme3n1: 125 TiB written so far, 93% of its rated life used: rated for about 134.4 TiB\n"));
  EXPECT_THAT(advice(found), HasSubstr("nvme3n1 has 93% of its rated life behind it"));
  auto json = nlohmann::json::parse(to_json(found))["folders"][0]["drives"][0];
  EXPECT_EQ(json["name"], "nvme3n1");
  EXPECT_EQ(json["written_bytes"], (int64_t{1} << 28) * 512'000);
  EXPECT_EQ(json["used_percent"], 93);
  EXPECT_EQ(json["refused"], nullptr);

  asked.command_drive = [](const std::string&, nvme_passthru_cmd&) { return EACCES; };
  found = doctor(asked);
  EXPECT_THAT(to_text(found), HasSubstr("  How worn nvme3n1 is cannot be read: "));
  json = nlohmann::json::parse(to_json(found))["folders"][0]["drives"][0];
  EXPECT_EQ(json["used_percent"], nullptr);
}

TEST_F(DoctorTest, ListsEveryBoundAndTakesTheTightest) {
  machine_.write("/proc/self/cgroup", "0::/job\n");
  machine_.write("/proc/self/mountinfo", "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
  machine_.write("/sys/fs/cgroup/job/memory.max", std::to_string(MiB(512).count()) + "\n");
  machine_.write("/sys/fs/cgroup/job/memory.current", std::to_string(MiB(240).count()) + "\n");
  machine_.write("/sys/fs/cgroup/job/memory.stat", "inactive_file 0\n");
  const Diagnosis found = doctor(options());
  ASSERT_EQ(found.memory.size(), 2u);
  EXPECT_EQ(found.memory[0].where, "/proc/meminfo's MemAvailable");
  EXPECT_EQ(found.memory[0].limit, GiB(4));
  EXPECT_EQ(found.memory[1].where, "/sys/fs/cgroup/job");
  EXPECT_EQ(found.memory[1].limit, MiB(512));
  EXPECT_EQ(found.memory[1].left, MiB(512 - 240 - 16));
  EXPECT_EQ(found.device_budget, MiB(240));
  EXPECT_EQ(found.host_budget, MiB(128));
}

TEST_F(DoctorTest, AdvisesNothingWhereNothingIsHeldBack) {
  auto one_node = Topology::from_xml(EBBTIDE_TOPOLOGIES "/no_numa.xml");
  ASSERT_TRUE(one_node);
  DoctorOptions asked = options({folder_.path()});
  asked.topology = std::make_shared<const Topology>(std::move(one_node).value());
  const Diagnosis found = doctor(asked);
  if (!found.folders[0].io_uring || found.folders[0].ram)
    GTEST_SKIP() << "here a disk is not served at its best: " << found.folders[0].description;
  EXPECT_THAT(found.advice, IsEmpty());
  EXPECT_THAT(to_text(found), HasSubstr("Nothing is held back."));
}

TEST_F(DoctorTest, AdvisesWhatIsHeldBack) {
  machine_.write("/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
  machine_.write("/proc/self/limits",
                 "Max locked memory         65536                65536                bytes     \n");
  EXPECT_EQ(::unsetenv("MALLOC_MMAP_THRESHOLD_"), 0);
  const Diagnosis found = doctor(options());
  EXPECT_EQ(found.huge_pages, "never");
  EXPECT_EQ(found.memlock, KiB(64));
  EXPECT_THAT(found.advice, Contains(HasSubstr("transparent_hugepage")));
  EXPECT_THAT(found.advice, Contains(HasSubstr("64 KiB")));
  EXPECT_THAT(found.advice, Contains(HasSubstr("spill_to")));
  EXPECT_THAT(found.advice, Contains(HasSubstr("MALLOC_MMAP_THRESHOLD_=131072")));
  EXPECT_THAT(to_text(found), HasSubstr("What would help:\n- "));
}

TEST_F(DoctorTest, SaysWhereAFolderLiesInMemory) {
  if (!std::filesystem::exists("/dev/shm")) GTEST_SKIP() << "this machine has no /dev/shm";
  const Diagnosis found = doctor(options({"/dev/shm"}));
  if (!found.folders[0].refused.empty()) GTEST_SKIP() << found.folders[0].refused;
  if (!found.folders[0].ram) GTEST_SKIP() << "/dev/shm is no tmpfs here";
  EXPECT_THAT(found.advice, Contains(HasSubstr("(tmpfs)")));
}

TEST_F(DoctorTest, ReadsAMachineThatHidesEverything) {
  const SystemTree empty;
  DoctorOptions asked = options();
  asked.system_root = empty.root();
  const Diagnosis found = doctor(asked);
  EXPECT_THAT(found.memory, IsEmpty());
  EXPECT_EQ(found.huge_pages, "");
  EXPECT_EQ(found.memlock, std::nullopt);
  EXPECT_THAT(to_text(found), HasSubstr("no bound that can be read"));
}

TEST_F(DoctorTest, MeasuresALinkAndFindsItsNode) {
  const auto driver = std::make_shared<FakeCudaApi>(std::vector<ChaosOptions>{{.pace = Pace::kEager}});
  std::string xml = text_of(EBBTIDE_TOPOLOGIES "/dual_socket_gpus.xml");
  replace_all(xml, "0000:81:00.0", "0000:a0:00.0");
  machine_.write("/machine.xml", xml);
  auto topology = Topology::from_xml(machine_.root() + "/machine.xml");
  ASSERT_TRUE(topology);
  DoctorOptions asked = options();
  asked.topology = std::make_shared<const Topology>(std::move(topology).value());
  asked.accelerators.push_back({.name = "Pretend GPU 0",
                                .device = CudaDevice::open(driver, 0).value(),
                                .allocator = std::make_shared<ChaosAllocator>(driver->device()),
                                .stream = driver->device().make_stream("compute")});
  asked.accelerators.push_back({.name = "cuda:1", .refused = "its driver is too old"});
  const Diagnosis found = doctor(asked);
  ASSERT_EQ(found.accelerators.size(), 2u);
  const Diagnosis::Accelerator& gpu = found.accelerators[0];
  EXPECT_EQ(gpu.refused, "");
  ASSERT_TRUE(gpu.link);
  EXPECT_GT(gpu.link->out, 0);
  EXPECT_GT(gpu.link->in_with_out, 0);
  EXPECT_EQ(gpu.node, NumaNode{1});
  EXPECT_GT(gpu.memory, Bytes(0));
  EXPECT_EQ(driver->device().live_bytes(), Bytes(0)) << "all is given back";
  EXPECT_THAT(found.nodes, testing::SizeIs(2));
  EXPECT_THAT(found.unbound_because, HasSubstr("another machine's"));
  EXPECT_THAT(advice(found), HasSubstr("cuda:1: its driver is too old"));
  EXPECT_THAT(advice(found), HasSubstr("any NUMA node"));
}

TEST_F(DoctorTest, AnAcceleratorThatPinsNothingHasNoLink) {
  const auto driver = std::make_shared<FakeCudaApi>(std::vector<ChaosOptions>{{.pace = Pace::kEager}});
  DoctorOptions asked = options();
  asked.accelerators.push_back({.name = "Pretend GPU 0",
                                .device = CudaDevice::open(driver, 0).value(),
                                .allocator = std::make_shared<ChaosAllocator>(driver->device()),
                                .stream = driver->device().make_stream("compute")});
  driver->lose(CudaResult::kEccUncorrectable);
  const Diagnosis found = doctor(asked);
  EXPECT_FALSE(found.accelerators[0].link);
  EXPECT_THAT(found.accelerators[0].refused, Not(IsEmpty()));
}

TEST_F(DoctorTest, JsonHoldsTheSame) {
  const Diagnosis found = doctor(options({"/nowhere"}));
  const auto json = nlohmann::json::parse(to_json(found));
  EXPECT_EQ(json["device_budget_bytes"], found.device_budget.count());
  EXPECT_EQ(json["memory"][0]["limit_bytes"], GiB(4).count());
  EXPECT_EQ(json["huge_pages"], "madvise");
  EXPECT_EQ(json["memlock_bytes"], nullptr);
  EXPECT_EQ(json["folders"][0]["path"], "/nowhere");
  EXPECT_EQ(json["folders"][0]["write"], nullptr);
  EXPECT_EQ(json["advice"].size(), found.advice.size());
}

}  // namespace
}  // namespace ebbtide::test
