#include <ebbtide/pinned_pool/topology.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "tests/pinned_pool/topology_xml.h"

namespace ebbtide {
namespace {

const std::string kDualSocket = EBBTIDE_TEST_DATA "/dual_socket_gpus.xml";

TEST(Topology, ThisMachineHasANodeAndBindsToIt) {
  auto topology = Topology::load();
  ASSERT_TRUE(topology) << topology.failure().message;
  ASSERT_FALSE(topology.value().nodes().empty());
  const NumaNode node = topology.value().node_of_this_thread();
  EXPECT_THAT(topology.value().nodes(), testing::Contains(node));

  constexpr size_t kBytes = 1 << 20;
  void* data = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(data, MAP_FAILED);
  const Status bound = topology.value().bind_memory(data, kBytes, node);
  ::munmap(data, kBytes);
  if (!bound) GTEST_SKIP() << "this machine or container refuses to bind memory: " << bound.failure().message;
}

// Found in sysfs, since the libpciaccess way is switched off.
TEST(Topology, ThisMachinesDisksAndCardsAreFound) {
  auto topology = Topology::load();
  ASSERT_TRUE(topology);
  const std::filesystem::path folder = "/sys/bus/pci/devices";
  int found = 0, looked_at = 0;
  if (std::filesystem::exists(folder)) {
    for (const auto& device : std::filesystem::directory_iterator(folder)) {
      std::ifstream file(device.path() / "class");
      std::string type;
      if (!(file >> type) || (type.rfind("0x01", 0) != 0 && type.rfind("0x02", 0) != 0 && type.rfind("0x03", 0) != 0))
        continue;
      ++looked_at;
      found += topology.value().node_of_pci(device.path().filename().string()) ? 1 : 0;
    }
  }
  if (looked_at == 0) GTEST_SKIP() << "this machine shows no PCI storage, network or display device";
  EXPECT_GT(found, 0);
}

TEST(Topology, BindsAThreadWithinItsAffinity) {
  auto topology = Topology::load();
  ASSERT_TRUE(topology);
  std::thread([&] {
    cpu_set_t mine;
    CPU_ZERO(&mine);
    CPU_SET(::sched_getcpu(), &mine);
    if (::sched_setaffinity(0, sizeof mine, &mine) != 0) return;
    const Status bound = topology.value().bind_this_thread(topology.value().node_of_this_thread());
    EXPECT_TRUE(bound) << bound.failure().message;
    cpu_set_t after;
    CPU_ZERO(&after);
    ASSERT_EQ(::sched_getaffinity(0, sizeof after, &after), 0);
    EXPECT_TRUE(CPU_EQUAL(&mine, &after)) << "the node's other cores must not be won back";
  }).join();
}

TEST(Topology, DeviceFindsItsSocketsMemory) {
  auto topology = Topology::from_xml(kDualSocket);
  ASSERT_TRUE(topology) << topology.failure().message;
  const Topology& machine = topology.value();
  EXPECT_EQ(machine.node_of_pci("0000:11:00.0"), NumaNode{0});
  EXPECT_EQ(machine.node_of_pci("0000:13:00.0"), NumaNode{0});
  EXPECT_EQ(machine.node_of_pci("0000:81:00.0"), NumaNode{1});
  EXPECT_EQ(machine.node_of_pci("0000:83:00.0"), NumaNode{1});
  EXPECT_EQ(machine.node_of_pci("0000:99:00.0"), std::nullopt);
  EXPECT_EQ(machine.node_of_pci("nonsense"), std::nullopt);
}

TEST(Topology, AGpusOwnMemoryIsNoHostMemory) {
  auto topology = Topology::from_xml(kDualSocket);
  ASSERT_TRUE(topology);
  EXPECT_THAT(topology.value().nodes(), testing::ElementsAre(NumaNode{0}, NumaNode{1}));
}

TEST(Topology, EightGpusFindTheirFourNeighbours) {
  auto topology = Topology::from_xml(EBBTIDE_TEST_DATA "/eight_gpus.xml");
  ASSERT_TRUE(topology) << topology.failure().message;
  EXPECT_THAT(topology.value().nodes(), testing::ElementsAre(NumaNode{0}, NumaNode{1}));
  for (const char* gpu : {"0000:11:00.0", "0000:13:00.0", "0000:15:00.0", "0000:17:00.0"})
    EXPECT_EQ(topology.value().node_of_pci(gpu), NumaNode{0}) << gpu;
  for (const char* gpu : {"0000:91:00.0", "0000:93:00.0", "0000:95:00.0", "0000:97:00.0"})
    EXPECT_EQ(topology.value().node_of_pci(gpu), NumaNode{1}) << gpu;
}

TEST(Topology, ASubNumaClusterIsNearerThanTheSocketsOther) {
  auto topology = Topology::from_xml(EBBTIDE_TEST_DATA "/sub_numa_clusters.xml");
  ASSERT_TRUE(topology) << topology.failure().message;
  EXPECT_THAT(topology.value().nodes(), testing::ElementsAre(NumaNode{0}, NumaNode{1}, NumaNode{2}, NumaNode{3}));
  EXPECT_EQ(topology.value().node_of_pci("0000:11:00.0"), NumaNode{0});
  EXPECT_EQ(topology.value().node_of_pci("0000:51:00.0"), NumaNode{1});
  EXPECT_EQ(topology.value().node_of_pci("0000:91:00.0"), NumaNode{2});
  EXPECT_EQ(topology.value().node_of_pci("0000:d1:00.0"), NumaNode{3});
}

// Bound to HBM, a training's host copies would take the fastest memory from it; behind CXL, copies crawl.
TEST(Topology, MemoryWithoutCpusIsNotMainMemory) {
  const std::string plain = test::text_of(EBBTIDE_TEST_DATA "/hbm_and_cxl.xml");
  std::string named = plain;
  for (const char* node : {"4\" cpuset=\"0x000000ff\"", "2\" cpuset=\"0x0000000f\"", "3\" cpuset=\"0x000000f0\""}) {
    const std::string object = std::string("<object type=\"NUMANode\" ") + "os_index=\"" + node;
    ASSERT_NE(named.find(object), std::string::npos) << object;
    named.insert(named.find(object) + std::string("<object type=\"NUMANode\" ").size(),
                 node[0] == '4' ? "subtype=\"CXL-DRAM\" " : "subtype=\"HBM\" ");
  }
  test::SystemTree folder;
  for (const std::string& xml : {plain, named}) {
    folder.write("/machine.xml", xml);
    auto topology = Topology::from_xml(folder.root() + "/machine.xml");
    ASSERT_TRUE(topology) << topology.failure().message;
    EXPECT_THAT(topology.value().nodes(), testing::ElementsAre(NumaNode{0}, NumaNode{1}));
    EXPECT_EQ(topology.value().node_of_pci("0000:11:00.0"), NumaNode{0});
    EXPECT_EQ(topology.value().node_of_pci("0000:91:00.0"), NumaNode{1});
  }
}

TEST(Topology, NodesOutsideTheCpusetAreNotOurs) {
  std::string xml = test::text_of(kDualSocket);
  const std::string all = "allowed_nodeset=\"0x00000007\"";
  ASSERT_NE(xml.find(all), std::string::npos);
  xml.replace(xml.find(all), all.size(), "allowed_nodeset=\"0x00000001\"");
  test::SystemTree folder;
  folder.write("/restricted.xml", xml);
  auto topology = Topology::from_xml(folder.root() + "/restricted.xml");
  ASSERT_TRUE(topology) << topology.failure().message;
  EXPECT_THAT(topology.value().nodes(), testing::ElementsAre(NumaNode{0}));
  EXPECT_EQ(topology.value().node_of_pci("0000:81:00.0"), std::nullopt);
}

TEST(Topology, MachineWithoutNumaIsOneNode) {
  auto topology = Topology::from_xml(EBBTIDE_TEST_DATA "/no_numa.xml");
  ASSERT_TRUE(topology) << topology.failure().message;
  EXPECT_THAT(topology.value().nodes(), testing::ElementsAre(NumaNode{0}));
  EXPECT_EQ(topology.value().node_of_pci("0000:00:05.0"), NumaNode{0});
}

// hwloc's own calls return success there and do nothing.
TEST(Topology, AnotherMachinesTopologyBindsNothing) {
  auto topology = Topology::from_xml(kDualSocket);
  ASSERT_TRUE(topology);
  int memory = 0;
  EXPECT_EQ(topology.value().bind_memory(&memory, sizeof memory, NumaNode{1}).failure().code,
            FailureCode::kUnsupported);
  EXPECT_EQ(topology.value().bind_this_thread(NumaNode{1}).failure().code, FailureCode::kUnsupported);
  EXPECT_EQ(topology.value().bind_memory(&memory, sizeof memory, NumaNode{2}).failure().code, FailureCode::kInvalid);
}

TEST(Topology, UnreadableXmlIsAFailure) {
  EXPECT_EQ(Topology::from_xml("/nowhere/topology.xml").failure().code, FailureCode::kInvalid);
}

}  // namespace
}  // namespace ebbtide
