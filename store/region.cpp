#include <ebbtide/store/error.h>
#include <ebbtide/store/region.h>

#include <array>
#include <map>
#include <mutex>
#include <utility>

namespace ebbtide {

Policy parse_policy(std::string_view text) {
  static constexpr std::array<std::pair<std::string_view, Policy>, 5> kNames{{{"auto", Policy::kAuto},
                                                                              {"keep", Policy::kKeep},
                                                                              {"offload", Policy::kOffload},
                                                                              {"spill", Policy::kSpill},
                                                                              {"recompute", Policy::kRecompute}}};
  for (const auto& [name, policy] : kNames)
    if (name == text) return policy;
  throw ConfigError("policy='" + std::string(text) +
                    "' is not valid: accepted are 'auto', 'keep', 'offload', 'spill' and 'recompute'");
}

const RegionLabel* RegionLabel::of(std::string_view name, Policy policy) {
  if (name.empty()) throw ConfigError("name='' is not valid: accepted is a text that names the region in the report");
  static auto* mutex = new std::mutex;
  static auto* labels = new std::map<std::pair<std::string, Policy>, RegionLabel>;
  const std::lock_guard lock(*mutex);
  std::pair<std::string, Policy> key(name, policy);
  const auto found = labels->find(key);
  if (found != labels->end()) return &found->second;
  RegionLabel label{key.first, policy, "region " + key.first};
  return &labels->emplace(std::move(key), std::move(label)).first->second;
}

}  // namespace ebbtide
