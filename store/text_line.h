// A line of a text for people.
#pragma once

#include <array>
#include <cstdio>
#include <string>

namespace ebbtide {

/// As printf, with a line feed behind; 511 characters at most.
template <class... Arguments>
std::string text_line(const char* format, Arguments... arguments) {
  std::array<char, 512> text{};
  std::snprintf(text.data(), text.size(), format, arguments...);
  return std::string(text.data()) + "\n";
}

}  // namespace ebbtide
