// Real text as bytes, for the GPT of the benchmarks; text.py reads the same bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace bench {

/// What the user asked for cannot be done; what() is the one line that they read.
struct BadInput : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The bytes of a file, or of all files under a folder in the order of their names, each file once however many links
/// name it.
///
/// Errors: BadInput where there is nothing to read or less than one sequence of `tokens` and its successor.
inline std::vector<uint8_t> load_text(const std::string& path, int64_t tokens) {
  namespace fs = std::filesystem;
  std::vector<uint8_t> text;
  try {
    if (!fs::exists(path)) throw BadInput("--data " + path + ": no such file or folder");
    std::vector<fs::path> names{path};
    if (fs::is_directory(path)) {
      names.assign(fs::recursive_directory_iterator(path), fs::recursive_directory_iterator());
      std::sort(names.begin(), names.end());
    }
    std::set<fs::path> seen;
    for (const fs::path& name : names) {
      if (!fs::is_regular_file(name) || !seen.insert(fs::canonical(name)).second) continue;
      std::ifstream file(name, std::ios::binary);
      text.insert(text.end(), std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
      if (!file) throw BadInput("--data " + path + ": cannot read " + name.string());
    }
  } catch (const fs::filesystem_error& error) {
    throw BadInput("--data " + path + ": " + error.code().message() + ": " + error.path1().string());
  }
  if (static_cast<int64_t>(text.size()) < tokens + 1) {
    throw BadInput("--data " + path + ": " + std::to_string(text.size()) +
                   " bytes of text, and one sequence of --tokens " + std::to_string(tokens) + " needs " +
                   std::to_string(tokens + 1));
  }
  return text;
}

}  // namespace bench
