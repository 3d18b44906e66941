// Rows of a benchmark, a line of JSON each, as bench/program.py reads them.
#pragma once

#include <cstdio>
#include <optional>
#include <string>

namespace ebbtide::bench {

struct RowPrinter {
  const char* part;

  void row(const std::string& name, double value, const char* unit, const std::string& goal = "",
           std::optional<bool> met = std::nullopt) const {
    std::printf(
        "{\"part\": \"%s\", \"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\", \"goal\": \"%s\", \"met\": %s}\n",
        part, name.c_str(), value, unit, goal.c_str(),
        !met   ? "null"
        : *met ? "true"
               : "false");
    std::fflush(stdout);
  }
  void at_most(const std::string& name, double value, const char* unit, double limit) const {
    char goal[32];
    std::snprintf(goal, sizeof goal, "<= %.4g", limit);
    row(name, value, unit, goal, value <= limit);
  }
};

}  // namespace ebbtide::bench
