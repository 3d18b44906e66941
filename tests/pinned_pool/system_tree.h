// A hand-made /proc and /sys in a temporary folder.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

namespace ebbtide::test {

class SystemTree {
 public:
  SystemTree() {
    std::string name = (std::filesystem::temp_directory_path() / "ebbtide-tree-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder: " + name);
    root_ = name;
  }
  ~SystemTree() {
    std::error_code ignored;
    std::filesystem::remove_all(root_, ignored);
  }
  SystemTree(const SystemTree&) = delete;
  SystemTree& operator=(const SystemTree&) = delete;

  const std::string& root() const { return root_; }

  void write(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream file(root_ + path, std::ios::trunc);
    file << text;
    if (!file.flush()) throw std::runtime_error("cannot write " + root_ + path);
  }

  /// MemTotal and MemAvailable, in MiB.
  void machine(int64_t total, int64_t available) const {
    write("/proc/meminfo", "MemTotal:       " + std::to_string(total * 1024) +
                               " kB\nMemFree:        1 kB\nMemAvailable:   " + std::to_string(available * 1024) +
                               " kB\n");
  }

 private:
  std::string root_;
};

}  // namespace ebbtide::test
