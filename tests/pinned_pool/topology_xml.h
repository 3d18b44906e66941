// Machines as hwloc describes them, changed for a test.
#pragma once

#include <fstream>
#include <sstream>
#include <string>

#include "tests/pinned_pool/system_tree.h"

namespace ebbtide::test {

inline std::string text_of(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

/// REQUIRES: it is there.
inline void replace_all(std::string& text, const std::string& from, const std::string& to) {
  size_t at = text.find(from);
  if (at == std::string::npos) throw std::runtime_error("there is no " + from);
  for (; at != std::string::npos; at = text.find(from, at + to.size())) text.replace(at, from.size(), to);
}

}  // namespace ebbtide::test
