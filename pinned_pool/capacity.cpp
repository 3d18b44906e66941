#include <ebbtide/pinned_pool/capacity.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string_view>
#include <vector>

namespace ebbtide::pinned_pool {
namespace {

constexpr int64_t kUnbounded = std::numeric_limits<int64_t>::max();

std::optional<std::string> first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return line;
}

std::optional<int64_t> parse_number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc::result_out_of_range) return kUnbounded;
  if (error != std::errc() || end == text.data()) return std::nullopt;
  return static_cast<int64_t>(std::min<uint64_t>(value, kUnbounded));
}

/// A file with one number, or "max".
std::optional<int64_t> number_in(const std::string& path) {
  const auto line = first_line(path);
  if (!line) return std::nullopt;
  return *line == "max" ? kUnbounded : parse_number(*line);
}

/// The number after `key` in a file of lines "key[:] number ...". `key` may hold blanks ("Node 0 MemFree:").
std::optional<int64_t> value_of(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.compare(0, key.size(), key) != 0 || line.size() == key.size()) continue;
    const size_t start = line.find_first_not_of(" \t", key.size());
    if (start == key.size() || start == std::string::npos) continue;  // a longer key, or no number
    return parse_number(std::string_view(line).substr(start));
  }
  return std::nullopt;
}

Room bounded(int64_t left, int64_t limit, std::string where) {
  const int64_t reserve = std::clamp(limit / 32, MiB(16).count(), GiB(1).count());
  return Room{Bytes(std::max<int64_t>(left - reserve, 0)), Bytes(reserve), std::move(where), Bytes(limit)};
}

/// mountinfo writes blanks in paths as \040 and the like.
std::string unescape(std::string_view text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      plain += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

struct Hierarchy {
  bool v2 = false;
  std::string mount;  ///< where it is mounted
  std::string path;   ///< this process's cgroup below `mount`: "" or "/a/b"
};

bool has_word(std::string_view list, std::string_view word) {
  for (size_t start = 0; start <= list.size();) {
    const size_t end = std::min(list.find(',', start), list.size());
    if (list.substr(start, end - start) == word) return true;
    start = end + 1;
  }
  return false;
}

/// This process's path in a hierarchy, from /proc/self/cgroup: "ID:CONTROLLERS:PATH", with no controllers for v2.
std::optional<std::string> cgroup_path(const std::string& root, bool v2) {
  std::ifstream file(root + "/proc/self/cgroup");
  std::string line;
  while (std::getline(file, line)) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const auto controllers = std::string_view(line).substr(first + 1, second - first - 1);
    if (v2 ? controllers.empty() : has_word(controllers, "memory")) return line.substr(second + 1);
  }
  return std::nullopt;
}

/// The memory hierarchies that this process is in and can see: v1, v2, or both on a hybrid system.
std::vector<Hierarchy> hierarchies(const std::string& root) {
  std::vector<Hierarchy> found;
  std::ifstream file(root + "/proc/self/mountinfo");
  std::string line;
  while (std::getline(file, line)) {
    // ID PARENT MAJOR:MINOR ROOT MOUNT OPTIONS [OPTIONAL...] - TYPE SOURCE SUPER_OPTIONS
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream before(line.substr(0, dash));
    std::istringstream after(line.substr(dash + 3));
    std::string skipped, mount_root, mount, type, super_options;
    before >> skipped >> skipped >> skipped >> mount_root >> mount;
    after >> type >> skipped >> super_options;
    const bool v2 = type == "cgroup2";
    if (!v2 && !(type == "cgroup" && has_word(super_options, "memory"))) continue;
    auto path = cgroup_path(root, v2);
    if (!path) continue;
    mount_root = unescape(mount_root);
    if (mount_root != "/") {
      // Only a part of the hierarchy is mounted (a container): what is above it is out of sight.
      const bool below = path->compare(0, mount_root.size(), mount_root) == 0 &&
                         (path->size() == mount_root.size() || (*path)[mount_root.size()] == '/');
      path = below ? path->substr(mount_root.size()) : "";
    }
    if (*path == "/" || path->find("/..") != std::string::npos) path = "";
    found.push_back({v2, unescape(mount), *path});
  }
  return found;
}

/// The bound that one cgroup sets, if it sets one.
std::optional<Room> cgroup_room(const std::string& root, const std::string& folder, bool v2) {
  const std::string real = root + folder;
  auto limit = number_in(real + (v2 ? "/memory.max" : "/memory.limit_in_bytes"));
  if (v2) {
    // Above memory.high nothing is killed, but every allocation is made to reclaim: as good as full.
    if (const auto high = number_in(real + "/memory.high")) limit = std::min(limit.value_or(kUnbounded), *high);
  }
  const auto usage = number_in(real + (v2 ? "/memory.current" : "/memory.usage_in_bytes"));
  if (!limit || !usage || *limit >= kUnbounded / 2) return std::nullopt;  // v1 writes "unlimited" as 2^63 less a page
  // v1's plain inactive_file leaves out the cgroups below.
  const int64_t cache = value_of(real + "/memory.stat", v2 ? "inactive_file" : "total_inactive_file").value_or(0);
  return bounded(*limit - (*usage - cache), *limit, folder);
}

}  // namespace

Room Capacity::room() const {
  Room tightest{Bytes(kUnbounded), Bytes(0), "no bound that can be read", Bytes(kUnbounded)};
  for (Room& room : bounds())
    if (room.left < tightest.left) tightest = std::move(room);
  return tightest;
}

std::vector<Room> Capacity::bounds() const {
  std::vector<Room> found;
  const std::string meminfo = root_ + "/proc/meminfo";
  if (const auto available = value_of(meminfo, "MemAvailable:")) {
    const int64_t total = value_of(meminfo, "MemTotal:").value_or(*available);
    found.push_back(bounded(*available * 1024, total * 1024, "/proc/meminfo's MemAvailable"));
  }
  for (const Hierarchy& hierarchy : hierarchies(root_)) {
    std::string path = hierarchy.path;
    while (true) {
      if (auto room = cgroup_room(root_, hierarchy.mount + path, hierarchy.v2)) found.push_back(*std::move(room));
      if (path.empty()) break;
      path.resize(path.rfind('/'));
    }
  }
  return found;
}

Room Capacity::room_on(NumaNode node) const {
  const std::string number = std::to_string(static_cast<int>(node));
  const std::string folder = "/sys/devices/system/node/node" + number;
  const std::string meminfo = root_ + folder + "/meminfo";
  const std::string key = "Node " + number + " ";
  const auto free = value_of(meminfo, key + "MemFree:");
  const auto total = value_of(meminfo, key + "MemTotal:");
  if (!free || !total) return Room{Bytes(kUnbounded), Bytes(0), "no bound that can be read", Bytes(kUnbounded)};
  const int64_t cache = value_of(meminfo, key + "Inactive(file):").value_or(0);
  return bounded((*free + cache) * 1024, *total * 1024, folder);
}

}  // namespace ebbtide::pinned_pool
