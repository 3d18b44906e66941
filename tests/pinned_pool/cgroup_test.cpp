// A real control group, smaller than the pool's capacity: the kernel would kill a pool that does not ask first.
#include <ebbtide/pinned_pool/pool.h>

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace ebbtide {
namespace {

constexpr Bytes kLimit = MiB(512);

bool put(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  return static_cast<bool>(file.flush());
}

/// A group of its own below this process's; gone at the end. Without a reason why not, it is there.
class Group {
 public:
  explicit Group(bool v2) {
    const std::string parent = v2 ? folder("", "cgroup2") : folder("memory", "cgroup");
    if (parent.empty()) {
      why_not_ = "there is no such hierarchy here, or not with memory";
      return;
    }
    folder_ = parent + "/ebbtide-test-" + std::to_string(::getpid());
    if (::mkdir(folder_.c_str(), 0755) != 0) {
      why_not_ = folder_ + ": " + std::strerror(errno);
      folder_.clear();
    } else if (!put(folder_ + (v2 ? "/memory.max" : "/memory.limit_in_bytes"), std::to_string(kLimit.count()))) {
      why_not_ = folder_ + " takes no limit";
    }
  }
  ~Group() {
    // Right after its last process has ended, the kernel may still call it busy.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!folder_.empty() && ::rmdir(folder_.c_str()) != 0 && errno == EBUSY &&
           std::chrono::steady_clock::now() < deadline)
      std::this_thread::yield();
  }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  const std::string& why_not() const { return why_not_; }
  bool join() const { return put(folder_ + "/cgroup.procs", std::to_string(::getpid())); }

 private:
  /// This process's folder in the hierarchy with that controller, if it can hand out memory.
  static std::string folder(const std::string& controller, const std::string& type) {
    std::string mount, path;
    std::ifstream mounts("/proc/self/mounts");
    for (std::string device, point, kind, options, rest; mounts >> device >> point >> kind >> options;) {
      std::getline(mounts, rest);
      if (kind == type &&
          (controller.empty() || ("," + options + ",").find("," + controller + ",") != std::string::npos))
        mount = point;
    }
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
      const size_t first = line.find(':'), second = line.find(':', first + 1);
      if (line.substr(first + 1, second - first - 1) == controller) path = line.substr(second + 1);
    }
    if (mount.empty() || path.empty()) return {};
    if (path == "/") path.clear();
    if (type == "cgroup2") {
      std::ifstream handed_out(mount + path + "/cgroup.subtree_control");
      std::string word;
      while (handed_out >> word && word != "memory") {
      }
      if (word != "memory") return {};
    }
    return mount + path;
  }

  std::string folder_;
  std::string why_not_;
};

/// In the group: takes all it gets. 0: was refused in time, with numbers.
int fill(const Group& group, bool keep_spare) {
  if (!group.join()) return 70;
  auto pool = PinnedPool::create({.capacity = GiB(4), .slab_bytes = MiB(64), .keep_spare = keep_spare});
  if (!pool) return 71;
  std::vector<Block> blocks;
  while (true) {
    auto block = pool.value()->acquire({.bytes = MiB(32)});
    if (!block) {
      std::fprintf(stderr, "after %zu blocks: %s\n", blocks.size(), block.failure().message.c_str());
      const bool says = block.failure().message.find("refusing to grow by 64 MiB: only ") == 0 &&
                        block.failure().message.find("/ebbtide-test-") != std::string::npos;
      if (!says) return 72;
      break;
    }
    blocks.push_back(std::move(block).value());
    if (blocks.size() > 16) return 73;  // more than the group has
  }
  if (blocks.size() < 10) return 74;
  blocks.clear();
  return pool.value()->trim() > MiB(300) ? 0 : 75;
}

class CgroupTest : public testing::TestWithParam<bool> {};

TEST_P(CgroupTest, RefusesGrowthWithNumbersAndIsNeverKilled) {
  for (const bool keep_spare : {false, true}) {
    const Group group(GetParam());
    if (!group.why_not().empty()) GTEST_SKIP() << group.why_not();
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::alarm(60);
      ::_exit(fill(group, keep_spare));
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Hierarchies, CgroupTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "v2" : "v1"; });

}  // namespace
}  // namespace ebbtide
