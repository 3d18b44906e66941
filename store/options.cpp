#include <ebbtide/store/error.h>
#include <ebbtide/store/options.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>

namespace ebbtide {
namespace {

std::string_view trimmed(std::string_view text) {
  const auto space = " \t\n";
  const size_t begin = text.find_first_not_of(space);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(space) - begin + 1);
}

std::optional<double> number_at_front(std::string_view text, std::string_view* rest) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || !std::isfinite(value)) return std::nullopt;
  *rest = trimmed(text.substr(static_cast<size_t>(end - text.data())));
  return value;
}

[[noreturn]] void reject(std::string_view name, std::string_view value, std::string_view accepted) {
  throw ConfigError(std::string(name) + "='" + std::string(value) + "' is not valid: accepted is " +
                    std::string(accepted));
}

constexpr std::string_view kSizes = "a size such as 2147483648, '512MiB', '2GiB' or '1.5TB'";

Bytes size_or_reject(std::string_view name, std::string_view value) {
  const auto bytes = parse_bytes(value);
  if (!bytes) reject(name, value, kSizes);
  return *bytes;
}

std::variant<Bytes, Share> budget_or_reject(std::string_view name, std::string_view value) {
  std::string_view rest;
  const auto number = number_at_front(trimmed(value), &rest);
  if (number && rest == "%") {
    if (*number < 0 || *number > 100) reject(name, value, "a percentage from 0% to 100%");
    return Share{*number / 100};
  }
  const auto bytes = parse_bytes(value);
  if (!bytes) reject(name, value, std::string(kSizes) + ", or a share of what the model saves such as '30%'");
  return *bytes;
}

bool flag_or_reject(std::string_view name, std::string_view value) {
  for (std::string_view yes : {"1", "true", "True", "yes", "on"})
    if (value == yes) return true;
  for (std::string_view no : {"0", "false", "False", "no", "off"})
    if (value == no) return false;
  reject(name, value, "true or false");
}

std::vector<std::string> folders(std::string_view value) {
  std::vector<std::string> result;
  for (size_t begin = 0; begin <= value.size();) {
    const size_t end = std::min(value.find(':', begin), value.size());
    if (end > begin) result.emplace_back(value.substr(begin, end - begin));
    begin = end + 1;
  }
  return result;
}

OnFull on_full_or_reject(std::string_view name, std::string_view value) {
  if (value == "keep") return OnFull::kKeep;
  if (value == "raise") return OnFull::kRaise;
  if (value == "auto") return OnFull::kAutomatic;
  reject(name, value, "'keep', 'raise' or 'auto'");
}

std::optional<NumaNode> numa_or_reject(std::string_view name, std::string_view value) {
  if (value == "auto") return std::nullopt;
  if (value == "off") return kAnyNode;
  int node = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), node);
  if (error != std::errc() || end != value.data() + value.size() || node < 0)
    reject(name, value, "'auto', 'off' or the number of a NUMA node");
  return NumaNode{node};
}

/// One row an option: its name, how text sets it, and whether it was left unset.
struct OptionRow {
  std::string_view name;
  void (*set)(Options&, std::string_view name, std::string_view value);
  bool (*unset)(const Options&);
};

constexpr std::array<OptionRow, 15> kOptions = {{
    {"device_budget",
     [](Options& o, std::string_view n, std::string_view v) { o.device_budget = budget_or_reject(n, v); },
     [](const Options& o) { return !o.device_budget && !o.device_memory; }},
    {"device_memory",
     [](Options& o, std::string_view n, std::string_view v) { o.device_memory = size_or_reject(n, v); },
     [](const Options& o) { return !o.device_memory && !o.device_budget; }},
    {"host_budget", [](Options& o, std::string_view n, std::string_view v) { o.host_budget = size_or_reject(n, v); },
     [](const Options& o) { return !o.host_budget; }},
    {"on_full", [](Options& o, std::string_view n, std::string_view v) { o.on_full = on_full_or_reject(n, v); },
     [](const Options& o) { return o.on_full == OnFull::kAutomatic; }},
    {"spill_to", [](Options& o, std::string_view, std::string_view v) { o.spill_to = folders(v); },
     [](const Options& o) { return o.spill_to.empty(); }},
    {"spill_budget", [](Options& o, std::string_view n, std::string_view v) { o.spill_budget = size_or_reject(n, v); },
     [](const Options& o) { return !o.spill_budget; }},
    {"spill_reserve",
     [](Options& o, std::string_view n, std::string_view v) { o.spill_reserve = size_or_reject(n, v); },
     [](const Options& o) { return !o.spill_reserve; }},
    {"spill_daily_writes",
     [](Options& o, std::string_view n, std::string_view v) { o.spill_daily_writes = size_or_reject(n, v); },
     [](const Options& o) { return !o.spill_daily_writes; }},
    {"spill_endurance",
     [](Options& o, std::string_view n, std::string_view v) { o.spill_endurance = size_or_reject(n, v); },
     [](const Options& o) { return !o.spill_endurance; }},
    {"min_bytes", [](Options& o, std::string_view n, std::string_view v) { o.min_bytes = size_or_reject(n, v); },
     [](const Options& o) { return !o.min_bytes; }},
    {"recompute", [](Options& o, std::string_view n, std::string_view v) { o.recompute = flag_or_reject(n, v); },
     [](const Options& o) { return !o.recompute; }},
    {"verify", [](Options& o, std::string_view n, std::string_view v) { o.verify = flag_or_reject(n, v); },
     [](const Options& o) { return !o.verify; }},
    {"checksum", [](Options& o, std::string_view n, std::string_view v) { o.checksum = flag_or_reject(n, v); },
     [](const Options& o) { return !o.checksum; }},
    {"numa", [](Options& o, std::string_view n, std::string_view v) { o.numa = numa_or_reject(n, v); },
     [](const Options& o) { return !o.numa; }},
    {"plan", [](Options& o, std::string_view, std::string_view v) { o.plan = v; },
     [](const Options& o) { return o.plan.empty(); }},
}};

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

}  // namespace

std::optional<Bytes> parse_bytes(std::string_view text) {
  struct Unit {
    std::string_view name;
    double bytes;
  };
  static constexpr std::array<Unit, 14> kUnits = {{{"", 1},
                                                   {"B", 1},
                                                   {"KiB", 1024.0},
                                                   {"MiB", 1048576.0},
                                                   {"GiB", 1073741824.0},
                                                   {"TiB", 1099511627776.0},
                                                   {"kB", 1e3},
                                                   {"KB", 1e3},
                                                   {"MB", 1e6},
                                                   {"GB", 1e9},
                                                   {"TB", 1e12},
                                                   {"K", 1024.0},
                                                   {"M", 1048576.0},
                                                   {"G", 1073741824.0}}};
  std::string_view unit;
  const auto number = number_at_front(trimmed(text), &unit);
  if (!number || *number < 0) return std::nullopt;
  const auto known = std::find_if(kUnits.begin(), kUnits.end(), [&](const Unit& u) { return u.name == unit; });
  if (known == kUnits.end()) return std::nullopt;
  const double bytes = *number * known->bytes;
  if (bytes > 1e18) return std::nullopt;
  return Bytes(static_cast<int64_t>(bytes));
}

void set_option(Options& options, std::string_view name, std::string_view value) {
  for (const OptionRow& row : kOptions) {
    if (row.name == name) {
      row.set(options, name, value);
      options.given.emplace(name);
      return;
    }
  }
  const auto nearest = std::min_element(kOptions.begin(), kOptions.end(), [&](const OptionRow& a, const OptionRow& b) {
    return edit_distance(a.name, name) < edit_distance(b.name, name);
  });
  throw ConfigError("there is no option '" + std::string(name) + "'; the nearest is '" + std::string(nearest->name) +
                    "'");
}

Options resolve(Options options) {
  for (const OptionRow& row : kOptions) {
    std::string variable = "EBBTIDE_" + std::string(row.name);
    std::transform(variable.begin(), variable.end(), variable.begin(),
                   [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; });
    const char* value = std::getenv(variable.c_str());
    if (value == nullptr || !row.unset(options) || options.given.contains(row.name)) continue;
    try {
      row.set(options, row.name, value);
    } catch (const ConfigError& error) {
      throw ConfigError("environment " + variable + ": " + error.what());
    }
  }
  const auto check_not_negative = [](std::string_view name, const std::optional<Bytes>& bytes) {
    if (bytes && *bytes < Bytes(0)) reject(name, std::to_string(bytes->count()), kSizes);
  };
  if (options.device_budget) {
    if (const Bytes* bytes = std::get_if<Bytes>(&*options.device_budget)) check_not_negative("device_budget", *bytes);
    if (const Share* share = std::get_if<Share>(&*options.device_budget))
      if (!(share->value >= 0 && share->value <= 1))
        reject("device_budget", std::to_string(share->value), "a share from 0 to 1");
  }
  check_not_negative("device_memory", options.device_memory);
  check_not_negative("host_budget", options.host_budget);
  check_not_negative("spill_budget", options.spill_budget);
  check_not_negative("spill_reserve", options.spill_reserve);
  check_not_negative("spill_daily_writes", options.spill_daily_writes);
  check_not_negative("spill_endurance", options.spill_endurance);
  check_not_negative("min_bytes", options.min_bytes);
  if (options.device_memory && options.device_budget)
    throw ConfigError("device_memory and device_budget are both given: the first is what the second is derived from");
  if (options.spill_budget && options.spill_to.empty())
    throw ConfigError("spill_budget is given but spill_to is not: name at least one folder to spill to");
  for (const std::string& folder : options.spill_to)
    if (folder.empty()) reject("spill_to", folder, "one folder or several");
  return options;
}

}  // namespace ebbtide
