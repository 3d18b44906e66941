// {"format":"ebbtide plan 1","checksum":"0123456789abcdef","kinds":[..]}
// The checksum is of all that follows it. A kind, the latest first:
// {"kind": n, "then": n, "prefixes": [n, ..], "profile": as json.cpp makes it,
//  "devices": [{"on": conditions as json.cpp makes them, "actions": "korkk..", "why": [n, ..]}, ..]}
#include <ebbtide/store/json.h>
#include <ebbtide/store/saved_plans.h>
#include <ebbtide/store/text_file.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <array>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <utility>

namespace ebbtide {
namespace {

constexpr std::string_view kFormat = R"({"format":"ebbtide plan )";
constexpr std::string_view kVersion = "1";
constexpr std::string_view kChecksum = R"(","checksum":")";
constexpr size_t kDigits = 16;
constexpr std::string_view kActions = "kosr";  // by their numbers

Failure refusal(const std::string& why) {
  return {FailureCode::kInvalid, 0, why};
}

std::string checksum(std::string_view text) {
  std::array<char, kDigits + 1> digits{};
  std::snprintf(digits.data(), digits.size(), "%016llx",
                static_cast<unsigned long long>(XXH3_64bits(text.data(), text.size())));
  return digits.data();
}

bool take(std::string_view& text, std::string_view expected) {
  if (!text.starts_with(expected)) return false;
  text.remove_prefix(expected.size());
  return true;
}

Json json_of(const Plan& plan, const Conditions& on) {
  std::string actions;
  for (const Action action : plan.actions) actions += kActions[static_cast<size_t>(action)];
  return {{"on", ebbtide::json_of(on)}, {"actions", actions}, {"why", plan.why}};
}

Json json_of(const SavedPlan& saved) {
  const Course& course = saved.course;
  Json devices = Json::array();
  for (size_t i = 0; i < course.plans.size(); ++i) devices.push_back(json_of(course.plans[i], course.on[i]));
  return {{"kind", course.kind},
          {"then", saved.then},
          {"prefixes", course.prefixes},
          {"profile", ebbtide::json_of(course.profile)},
          {"devices", devices}};
}

Plan plan_of(const Json& json, size_t records) {
  Plan plan;
  const auto actions = json.at("actions").get<std::string>();
  if (actions.size() != records || json.at("why").size() != records)
    throw std::invalid_argument("a plan is not for each of its records");
  for (const char letter : actions) {
    const size_t action = kActions.find(letter);
    if (action == std::string_view::npos) throw std::invalid_argument("an action is unknown");
    plan.actions.push_back(static_cast<Action>(action));
  }
  for (const Json& why : json.at("why"))
    plan.why.push_back(static_cast<Why>(integer_of(why, 0, static_cast<int64_t>(Why::kNoLowerTier))));
  return plan;
}

SavedPlan saved_plan_of(const Json& json) {
  Course course{.kind = hash_of(json.at("kind")), .profile = profile_of(json.at("profile"))};
  const auto& records = course.profile.records;
  for (const Json& prefix : json.at("prefixes")) course.prefixes.push_back(hash_of(prefix));
  if (course.prefixes.size() != records.size() || records.empty() || course.prefixes.back() != course.kind)
    throw std::invalid_argument("a kind of pass is not that of its records");
  for (const Json& device : json.at("devices")) {
    course.on.push_back(conditions_of(device.at("on")));
    course.plans.push_back(plan_of(device, records.size()));
  }
  for (const ProfiledRecord& record : records)
    if (record.device >= course.plans.size()) throw std::invalid_argument("a record's device has no plan");
  // Nothing new has to fit: this fills in what follows from the actions.
  return {held_within(course, course.on, /*recompute=*/true), hash_of(json.at("then"))};
}

}  // namespace

std::string to_json(const std::vector<SavedPlan>& plans) {
  Json kinds = Json::array();
  for (const SavedPlan& plan : plans) kinds.push_back(json_of(plan));
  const std::string rest = R"(","kinds":)" + text_of(kinds) + "}\n";
  return std::string(kFormat) + std::string(kVersion) + std::string(kChecksum) + checksum(rest) + rest;
}

Result<std::vector<SavedPlan>> plans_from_json(std::string_view text) {
  const std::string_view whole = text;
  if (!take(text, kFormat)) return refusal("it is no plan of ebbtide");
  if (!take(text, std::string(kVersion) + std::string(kChecksum)))
    return refusal("it is a plan of another version than " + std::string(kVersion) + ", which this ebbtide reads");
  if (text.size() < kDigits || checksum(text.substr(kDigits)) != text.substr(0, kDigits))
    return refusal("it was cut short or changed after it was written: its checksum is another");
  std::vector<SavedPlan> plans;
  try {
    const Json json = Json::parse(whole);
    for (const Json& kind : json.at("kinds")) plans.push_back(saved_plan_of(kind));
  } catch (const std::exception& error) {  // nlohmann's own derive from it
    return refusal("it is no plan of ebbtide: " + std::string(error.what()));
  }
  return plans;
}

Result<std::vector<SavedPlan>> read_plans(const std::string& path) {
  auto text = read_text_file(path);
  if (!text.ok()) return text.failure();
  return plans_from_json(text.value());
}

}  // namespace ebbtide
