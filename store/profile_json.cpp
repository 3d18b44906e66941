// {"format": "ebbtide profile 1", "seconds": s,
//  "records": [{"bytes": n, "moved": n, "device": n, "mobility": "movable", "op": "..", "region": "..", "kind": n,
//               "recipe": {"seconds": s, "inputs": [i, ..]}}, ..],
//  "steps": [["pack", record, at], ..]}
#include <ebbtide/store/profile.h>

#include <array>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

namespace ebbtide {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "ebbtide profile 1";
constexpr std::array<std::pair<const char*, Mobility>, 3> kMobilities{
    {{"movable", Mobility::kMovable}, {"elsewhere", Mobility::kElsewhere}, {"stays", Mobility::kStays}}};
constexpr std::array<std::pair<const char*, ProfiledStep::What>, 3> kSteps{{{"pack", ProfiledStep::What::kPack},
                                                                            {"unpack", ProfiledStep::What::kUnpack},
                                                                            {"death", ProfiledStep::What::kDeath}}};

template <class Names, class Value>
const char* name_in(const Names& names, Value value) {
  for (const auto& [name, named] : names)
    if (named == value) return name;
  return "";
}
template <class Names>
auto value_in(const Names& names, const std::string& wanted) {
  for (const auto& [name, named] : names)
    if (name == wanted) return named;
  throw std::invalid_argument("'" + wanted + "' is unknown");
}

Json json_of(const ProfiledRecord& record) {
  Json json = {{"bytes", record.bytes.count()},
               {"moved", record.moved.count()},
               {"device", record.device},
               {"mobility", name_in(kMobilities, record.mobility)},
               {"op", record.op},
               {"region", record.region},
               {"kind", record.kind}};
  if (record.recipe) json["recipe"] = {{"seconds", record.recipe->seconds}, {"inputs", record.recipe->inputs}};
  return json;
}

ProfiledRecord record_of(const Json& json) {
  ProfiledRecord record{.bytes = Bytes(json.at("bytes").get<int64_t>()),
                        .moved = Bytes(json.at("moved").get<int64_t>()),
                        .device = json.at("device").get<uint32_t>(),
                        .mobility = value_in(kMobilities, json.at("mobility").get<std::string>()),
                        .op = json.at("op").get<std::string>(),
                        .region = json.at("region").get<std::string>(),
                        .kind = json.at("kind").get<uint64_t>()};
  if (const auto recipe = json.find("recipe"); recipe != json.end())
    record.recipe =
        ProfiledRecipe{recipe->at("seconds").get<double>(), recipe->at("inputs").get<std::vector<uint32_t>>()};
  return record;
}

Failure refusal(const std::string& why) {
  return {FailureCode::kInvalid, 0, "this is no profile of ebbtide: " + why + "."};
}

}  // namespace

std::string to_json(const Profile& profile) {
  Json records = Json::array(), steps = Json::array();
  for (const ProfiledRecord& record : profile.records) records.push_back(json_of(record));
  for (const ProfiledStep& step : profile.steps)
    steps.push_back(Json::array({name_in(kSteps, step.what), step.record, step.at}));
  const Json json = {
      {"format", kFormat}, {"seconds", profile.seconds}, {"records", std::move(records)}, {"steps", std::move(steps)}};
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

Result<Profile> profile_from_json(std::string_view text) {
  Profile profile;
  try {
    const Json json = Json::parse(text);
    if (const auto format = json.at("format").get<std::string>(); format != kFormat)
      return refusal("its format is '" + format + "', not '" + kFormat + "'");
    profile.seconds = json.at("seconds").get<double>();
    for (const Json& record : json.at("records")) profile.records.push_back(record_of(record));
    for (const Json& step : json.at("steps"))
      profile.steps.push_back(
          {value_in(kSteps, step.at(0).get<std::string>()), step.at(1).get<uint32_t>(), step.at(2).get<double>()});
  } catch (const std::exception& error) {  // nlohmann's own derive from it
    return refusal(error.what());
  }
  if (const auto why = profile.invalid()) return refusal(*why);
  return profile;
}

}  // namespace ebbtide
