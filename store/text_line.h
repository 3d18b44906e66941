// A line of a text for people.
#pragma once

#include <array>
#include <cstdio>
#include <string>

namespace ebbtide {

/// As printf; 511 characters at most.
template <class... Arguments>
std::string text_of(const char* format, Arguments... arguments) {
  std::array<char, 512> text{};
  std::snprintf(text.data(), text.size(), format, arguments...);
  return text.data();
}

/// The same, with a line feed behind.
template <class... Arguments>
std::string text_line(const char* format, Arguments... arguments) {
  return text_of(format, arguments...) + "\n";
}

}  // namespace ebbtide
