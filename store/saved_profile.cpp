// {"format": "ebbtide profile 1", what json.cpp makes of a profile,
//  "store": {"version": 1, "recompute": b, "devices": [{"name": "..", what json.cpp makes of conditions}, ..]}}
// "store" came later, and may be missing.
#include <ebbtide/store/json.h>
#include <ebbtide/store/saved_profile.h>
#include <ebbtide/store/text_file.h>

#include <exception>
#include <utility>

namespace ebbtide {
namespace {

constexpr const char* kFormat = "ebbtide profile 1";
constexpr int64_t kStoreVersion = 1;

Failure refusal(const std::string& why) {
  return {FailureCode::kInvalid, 0, "this is no profile of ebbtide: " + why};
}

/// Of another version it is as if it were not there.
void read_store(const Json& json, SavedProfile& saved) {
  if (json.at("version") != kStoreVersion) return;
  saved.recompute = json.at("recompute").get<bool>();
  for (const Json& device : json.at("devices"))
    saved.devices.push_back({device.at("name").get<std::string>(), conditions_of(device)});
}

}  // namespace

std::string to_json(const SavedProfile& saved) {
  Json json = json_of(saved.profile);
  json["format"] = kFormat;
  Json devices = Json::array();
  for (const SavedProfile::Device& device : saved.devices) {
    devices.push_back(json_of(device.on));
    devices.back()["name"] = device.name;
  }
  json["store"] = {{"version", kStoreVersion}, {"recompute", saved.recompute}, {"devices", std::move(devices)}};
  return text_of(json);
}

Result<SavedProfile> profile_from_json(std::string_view text) {
  SavedProfile saved;
  try {
    const Json json = Json::parse(text);
    if (const auto format = json.at("format").get<std::string>(); format != kFormat)
      return refusal("its format is '" + format + "', not '" + kFormat + "'");
    saved.profile = profile_of(json);
    if (const auto store = json.find("store"); store != json.end()) read_store(*store, saved);
  } catch (const std::exception& error) {  // nlohmann's own derive from it
    return refusal(error.what());
  }
  for (const ProfiledRecord& record : saved.profile.records)
    if (!saved.devices.empty() && record.device >= saved.devices.size())
      return refusal("device " + std::to_string(record.device) + " is not described");
  return saved;
}

Result<SavedProfile> read_profile(const std::string& path) {
  auto text = read_text_file(path);
  if (!text.ok()) return text.failure();
  return profile_from_json(text.value());
}

}  // namespace ebbtide
