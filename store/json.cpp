// A profile:
// {"seconds": s,
//  "records": [{"bytes": n, "moved": n, "device": n, "mobility": "movable", "op": "..", "region": "..", "kind": n,
//               "recipe": {"seconds": s, "inputs": [i, ..], "group": i}}, ..],
//  "steps": [["pack", record, at], ..]}
// Conditions; times in seconds, speeds in bytes a second; of a link: alone, and while both directions are busy:
// {"device_budget": n, "host_budget": n, "spill_budget": n,
//  "link": {"out": [v, v], "in": [v, v], "latency_s": s},
//  "disk": {"write": v, "read": v, "latency_s": s, "compute_s_per_byte": s}}
#include <ebbtide/store/json.h>

#include <array>
#include <limits>
#include <stdexcept>
#include <utility>

namespace ebbtide {
namespace {

/// Sums of what is below, and what is divided by it, stay far from the ends of a double.
constexpr double kMost = 1e15;
constexpr double kLeastSpeed = 1;
constexpr auto kMostRecords = std::numeric_limits<uint32_t>::max();
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

[[noreturn]] void refuse(const Json& json, const char* why) {
  throw std::invalid_argument((json.is_primitive() ? text_of(json) : json.type_name()) + (" " + std::string(why)));
}

Bytes bytes_of(const Json& json) {
  return Bytes(integer_of(json, 0, std::numeric_limits<int64_t>::max()));
}
uint32_t index_of(const Json& json) {
  return static_cast<uint32_t>(integer_of(json, 0, kMostRecords));
}
double speed_of(const Json& json) {
  const double speed = number_of(json);
  if (speed < kLeastSpeed) refuse(json, "is less than a byte a second");
  return speed;
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
  if (record.recipe && record.recipe->group) json["recipe"]["group"] = *record.recipe->group;
  return json;
}

ProfiledRecord record_of(const Json& json) {
  ProfiledRecord record{.bytes = bytes_of(json.at("bytes")),
                        .moved = bytes_of(json.at("moved")),
                        .device = index_of(json.at("device")),
                        .mobility = value_in(kMobilities, json.at("mobility").get<std::string>()),
                        .op = json.at("op").get<std::string>(),
                        .region = json.at("region").get<std::string>(),
                        .kind = hash_of(json.at("kind"))};
  if (const auto recipe = json.find("recipe"); recipe != json.end()) {
    record.recipe = ProfiledRecipe{.seconds = number_of(recipe->at("seconds")), .inputs = {}};
    for (const Json& input : recipe->at("inputs")) record.recipe->inputs.push_back(index_of(input));
    if (const auto group = recipe->find("group"); group != recipe->end()) record.recipe->group = index_of(*group);
  }
  return record;
}

Json json_of(const LaneSpeed& speed) {
  return Json::array({speed.alone, speed.duplex});
}
LaneSpeed lane_of(const Json& json) {
  const LaneSpeed speed{speed_of(json.at(0)), speed_of(json.at(1))};
  if (speed.duplex > speed.alone) refuse(json.at(1), "is more than the link's speed alone");
  return speed;
}

}  // namespace

int64_t integer_of(const Json& json, int64_t least, int64_t most) {
  if (!json.is_number_integer()) refuse(json, "is no whole number");
  const bool too_large = json.is_number_unsigned() && json.get<uint64_t>() > static_cast<uint64_t>(most);
  if (too_large || json.get<int64_t>() < least || json.get<int64_t>() > most) refuse(json, "is out of range");
  return json.get<int64_t>();
}

double number_of(const Json& json) {
  if (!json.is_number()) refuse(json, "is no number");
  const auto number = json.get<double>();
  if (!(number >= 0 && number <= kMost)) refuse(json, "is out of range");
  return number;
}

uint64_t hash_of(const Json& json) {
  if (!json.is_number_unsigned()) refuse(json, "is no hash");
  return json.get<uint64_t>();
}

std::string text_of(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

Json json_of(const Profile& profile) {
  Json records = Json::array(), steps = Json::array();
  for (const ProfiledRecord& record : profile.records) records.push_back(json_of(record));
  for (const ProfiledStep& step : profile.steps)
    steps.push_back(Json::array({name_in(kSteps, step.what), step.record, step.at}));
  return {{"seconds", profile.seconds}, {"records", std::move(records)}, {"steps", std::move(steps)}};
}

Profile profile_of(const Json& json) {
  Profile profile;
  profile.seconds = number_of(json.at("seconds"));
  for (const Json& record : json.at("records")) profile.records.push_back(record_of(record));
  for (const Json& step : json.at("steps"))
    profile.steps.push_back(
        {value_in(kSteps, step.at(0).get<std::string>()), index_of(step.at(1)), number_of(step.at(2))});
  if (const auto why = profile.invalid()) throw std::invalid_argument(*why);
  return profile;
}

Json json_of(const Conditions& on) {
  Json json = {{"device_budget", on.budgets.device.count()},
               {"host_budget", on.budgets.host.count()},
               {"spill_budget", on.budgets.spill.count()}};
  if (const auto& link = on.machine.link)
    json["link"] = {{"out", json_of(link->out)}, {"in", json_of(link->in)}, {"latency_s", link->latency_s}};
  if (const auto& disk = on.machine.disk)
    json["disk"] = {{"write", disk->write},
                    {"read", disk->read},
                    {"latency_s", disk->latency_s},
                    {"compute_s_per_byte", disk->compute_s_per_byte}};
  return json;
}

Conditions conditions_of(const Json& json) {
  Conditions on;
  on.budgets = {.device = bytes_of(json.at("device_budget")),
                .host = bytes_of(json.at("host_budget")),
                .spill = bytes_of(json.at("spill_budget"))};
  if (const auto link = json.find("link"); link != json.end())
    on.machine.link = LinkModel{lane_of(link->at("out")), lane_of(link->at("in")), number_of(link->at("latency_s"))};
  if (const auto disk = json.find("disk"); disk != json.end())
    on.machine.disk = DiskModel{.write = speed_of(disk->at("write")),
                                .read = speed_of(disk->at("read")),
                                .latency_s = number_of(disk->at("latency_s")),
                                .compute_s_per_byte = number_of(disk->at("compute_s_per_byte"))};
  return on;
}

}  // namespace ebbtide
