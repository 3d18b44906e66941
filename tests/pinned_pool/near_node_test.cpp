#include <ebbtide/pinned_pool/near_node.h>

#include <gtest/gtest.h>
#include <sched.h>

#include <cstdlib>
#include <thread>
#include <vector>

#include "tests/pinned_pool/topology_xml.h"

namespace ebbtide {
namespace {

std::vector<int> my_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
  std::vector<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  return cores;
}

/// Two sockets, with the even cores on the first and the odd ones on the second.
Topology interleaved() {
  std::string xml = test::text_of(EBBTIDE_TEST_DATA "/dual_socket_gpus.xml");
  for (const auto& [from, to] :
       {std::pair{"0x00000003", "0x00000005"},
        {"0x0000000c", "0x0000000a"},
        {"0x00000002\" complete_cpuset=\"0x00000002", "(second)"},
        {"0x00000004\" complete_cpuset=\"0x00000004", "0x00000002\" complete_cpuset=\"0x00000002"},
        {"(second)", "0x00000004\" complete_cpuset=\"0x00000004"},
        {"\"PU\" os_index=\"1\"", "(one)"},
        {"\"PU\" os_index=\"2\"", "\"PU\" os_index=\"1\""},
        {"(one)", "\"PU\" os_index=\"2\""}})
    test::replace_all(xml, from, to);
  test::SystemTree folder;
  folder.write("/machine.xml", xml);
  // Else hwloc binds nothing by a topology that it was given.
  EXPECT_EQ(::setenv("HWLOC_THISSYSTEM", "1", 1), 0);
  auto topology = Topology::from_xml(folder.root() + "/machine.xml");
  EXPECT_EQ(::unsetenv("HWLOC_THISSYSTEM"), 0);
  if (!topology) throw std::runtime_error(topology.failure().message);
  return std::move(topology).value();
}

TEST(NearNode, ThreadsStartedMeanwhileKeepToItsCoresForGood) {
  if (my_cores() != std::vector<int>{0, 1})
    GTEST_SKIP() << "needs a process that may run on cores 0 and 1, and no others";
  const Topology topology = interleaved();
  std::vector<int> inside, after;
  std::thread([&] {
    std::thread child;
    {
      const NearNode near(&topology, NumaNode{1});
      child = std::thread([&] { inside = my_cores(); });
    }
    child.join();
    after = my_cores();
  }).join();
  EXPECT_EQ(inside, std::vector<int>{1});
  EXPECT_EQ(after, my_cores());
}

TEST(NearNode, DoesNothingWhereThereIsNothingToDo) {
  const std::vector<int> mine = my_cores();
  const auto elsewhere = Topology::from_xml(EBBTIDE_TEST_DATA "/dual_socket_gpus.xml");
  ASSERT_TRUE(elsewhere);
  for (const Topology* topology : {static_cast<const Topology*>(nullptr), &elsewhere.value()}) {
    for (const NumaNode node : {kAnyNode, NumaNode{0}, NumaNode{7}}) {
      const NearNode near(topology, node);
      EXPECT_EQ(my_cores(), mine);
    }
  }
}

}  // namespace
}  // namespace ebbtide
