#include <ebbtide/pinned_pool/capacity.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/pinned_pool/system_tree.h"

namespace ebbtide::pinned_pool {
namespace {

using test::SystemTree;

constexpr char kV1Mount[] = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";
constexpr char kV1OtherMount[] = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n";
constexpr char kV2Mount[] = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
constexpr char kUnlimitedV1[] = "9223372036854771712\n";

std::string mib(int64_t n) {
  return std::to_string(n << 20) + "\n";
}

void v1(const SystemTree& tree, const std::string& folder, const std::string& limit, int64_t usage, int64_t cache) {
  tree.write(folder + "/memory.limit_in_bytes", limit);
  tree.write(folder + "/memory.usage_in_bytes", mib(usage));
  tree.write(folder + "/memory.stat", "inactive_file 7\ntotal_inactive_file " + mib(cache) + "total_active_file 9\n");
}

void v2(const SystemTree& tree, const std::string& folder, const std::string& max, int64_t usage, int64_t cache) {
  tree.write(folder + "/memory.max", max);
  tree.write(folder + "/memory.current", mib(usage));
  tree.write(folder + "/memory.stat", "anon 5\ninactive_file " + mib(cache) + "active_file 9\n");
}

TEST(Capacity, MachineAloneBoundsWithoutCgroups) {
  SystemTree tree;
  tree.machine(8192, 3000);
  const Room room = Capacity(tree.root()).room();
  EXPECT_EQ(room.reserve, MiB(256));  // 1/32 of the machine
  EXPECT_EQ(room.left, MiB(3000 - 256));
  EXPECT_THAT(room.where, testing::HasSubstr("MemAvailable"));
}

TEST(Capacity, V1CountsFileCacheAsFree) {
  SystemTree tree;
  tree.machine(8192, 8000);
  tree.write("/proc/self/mountinfo", std::string(kV1OtherMount) + kV1Mount);
  tree.write("/proc/self/cgroup", "9:cpu:/other\n4:memory:/x\n0::/\n");
  v1(tree, "/sys/fs/cgroup/memory", kUnlimitedV1, 4000, 100);
  v1(tree, "/sys/fs/cgroup/memory/x", mib(1024), 900, 300);
  const Room room = Capacity(tree.root()).room();
  EXPECT_EQ(room.where, "/sys/fs/cgroup/memory/x");
  EXPECT_EQ(room.left, MiB(1024 - (900 - 300) - 32));
}

TEST(Capacity, TightestAncestorWinsV1) {
  SystemTree tree;
  tree.machine(8192, 8000);
  tree.write("/proc/self/mountinfo", kV1Mount);
  tree.write("/proc/self/cgroup", "4:hugetlb,memory:/a/b/c\n");
  v1(tree, "/sys/fs/cgroup/memory/a", mib(512), 400, 0);
  v1(tree, "/sys/fs/cgroup/memory/a/b", kUnlimitedV1, 400, 0);
  v1(tree, "/sys/fs/cgroup/memory/a/b/c", mib(2048), 10, 0);
  const Room room = Capacity(tree.root()).room();
  EXPECT_EQ(room.where, "/sys/fs/cgroup/memory/a");
  EXPECT_EQ(room.left, MiB(512 - 400 - 16));
}

TEST(Capacity, V2MaxAndHighOfEveryAncestor) {
  SystemTree tree;
  tree.machine(8192, 8000);
  tree.write("/proc/self/mountinfo", kV2Mount);
  tree.write("/proc/self/cgroup", "0::/slice/job\n");
  v2(tree, "/sys/fs/cgroup/slice", mib(4096), 1000, 0);
  v2(tree, "/sys/fs/cgroup/slice/job", "max\n", 500, 200);
  EXPECT_EQ(Capacity(tree.root()).room().where, "/sys/fs/cgroup/slice");
  tree.write("/sys/fs/cgroup/slice/job/memory.high", mib(1024));
  const Room room = Capacity(tree.root()).room();
  EXPECT_EQ(room.where, "/sys/fs/cgroup/slice/job");
  EXPECT_EQ(room.left, MiB(1024 - 300 - 32));
}

TEST(Capacity, HybridTakesTheTighterHierarchy) {
  SystemTree tree;
  tree.machine(8192, 8000);
  tree.write("/proc/self/mountinfo",
             std::string(kV1Mount) + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
  tree.write("/proc/self/cgroup", "4:memory:/x\n0::/y\n");
  v1(tree, "/sys/fs/cgroup/memory/x", mib(2048), 0, 0);
  v2(tree, "/sys/fs/cgroup/unified/y", mib(1024), 0, 0);
  EXPECT_EQ(Capacity(tree.root()).room().where, "/sys/fs/cgroup/unified/y");
  v1(tree, "/sys/fs/cgroup/memory/x", mib(512), 0, 0);
  EXPECT_EQ(Capacity(tree.root()).room().where, "/sys/fs/cgroup/memory/x");
}

// A container mounts only its own part: the path in /proc/self/cgroup begins with what is not visible.
TEST(Capacity, ContainerSeesOnlyItsPart) {
  SystemTree tree;
  tree.machine(8192, 8000);
  tree.write("/proc/self/mountinfo", "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
  tree.write("/proc/self/cgroup", "4:memory:/docker/abc/inner\n");
  v1(tree, "/sys/fs/cgroup/memory", mib(1024), 0, 0);
  v1(tree, "/sys/fs/cgroup/memory/inner", mib(512), 0, 0);
  EXPECT_EQ(Capacity(tree.root()).room().where, "/sys/fs/cgroup/memory/inner");
  tree.write("/proc/self/cgroup", "4:memory:/docker/abcd\n");  // not below /docker/abc
  EXPECT_EQ(Capacity(tree.root()).room().where, "/sys/fs/cgroup/memory");
}

TEST(Capacity, CgroupWhoseFolderIsHiddenFallsBackToItsAncestors) {
  SystemTree tree;
  tree.machine(8192, 8000);
  tree.write("/proc/self/mountinfo", kV2Mount);
  tree.write("/proc/self/cgroup", "0::/gone/deeper\n");
  v2(tree, "/sys/fs/cgroup", mib(640), 100, 0);
  EXPECT_EQ(Capacity(tree.root()).room().where, "/sys/fs/cgroup");
}

TEST(Capacity, NeverNegative) {
  SystemTree tree;
  tree.machine(8192, 8000);
  tree.write("/proc/self/mountinfo", kV2Mount);
  tree.write("/proc/self/cgroup", "0::/full\n");
  v2(tree, "/sys/fs/cgroup/full", mib(64), 80, 0);
  EXPECT_EQ(Capacity(tree.root()).room().left, Bytes(0));
}

TEST(Capacity, MountPointWithABlank) {
  SystemTree tree;
  tree.machine(8192, 8000);
  tree.write("/proc/self/mountinfo", "30 23 0:26 / /my\\040groups rw - cgroup2 cgroup2 rw\n");
  tree.write("/proc/self/cgroup", "0::/job\n");
  v2(tree, "/my groups/job", mib(256), 0, 0);
  EXPECT_EQ(Capacity(tree.root()).room().where, "/my groups/job");
}

TEST(Capacity, RubbishBoundsNothing) {
  SystemTree tree;
  tree.write("/proc/meminfo", "MemTotal: lots\nMemAvailable:\n");
  tree.write("/proc/self/mountinfo", std::string("\n - \n1 2\n") + kV2Mount);
  tree.write("/proc/self/cgroup", "::\nnonsense\n0::/x\n");
  tree.write("/sys/fs/cgroup/x/memory.max", "many\n");
  EXPECT_GT(Capacity(tree.root()).room().left, TiB(1024));
}

TEST(Capacity, NodeHasABoundOfItsOwn) {
  SystemTree tree;
  tree.write(
      "/sys/devices/system/node/node1/meminfo",
      "Node 1 MemTotal:       1048576 kB\nNode 1 MemFree:         204800 kB\nNode 1 Inactive(file):    102400 kB\n");
  const Room room = Capacity(tree.root()).room_on(NumaNode{1});
  EXPECT_EQ(room.left, MiB(200 + 100 - 32));
  EXPECT_EQ(room.where, "/sys/devices/system/node/node1");
  EXPECT_GT(Capacity(tree.root()).room_on(NumaNode{0}).left, TiB(1024));
}

TEST(Capacity, ThisMachineHasSomeButNotAll) {
  const Room room = Capacity().room();
  EXPECT_GT(room.left, Bytes(0));
  EXPECT_LT(room.left, TiB(256));
  EXPECT_FALSE(room.where.empty());
}

}  // namespace
}  // namespace ebbtide::pinned_pool
