// What the store's files hold, as JSON.
#pragma once

// For the sources that read and write these files. Users need not have nlohmann/json: no other header includes this one.
#include <ebbtide/store/machine.h>
#include <ebbtide/store/profile.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace ebbtide {

using Json = nlohmann::json;

/// Errors, here and below: std::exception, saying what is wrong.
int64_t integer_of(const Json& json, int64_t least, int64_t most);
/// Not negative, and at most 1e15.
double number_of(const Json& json);
uint64_t hash_of(const Json& json);

Json json_of(const Profile& profile);
/// Ensures: !profile.invalid().
Profile profile_of(const Json& json);

Json json_of(const Conditions& on);
Conditions conditions_of(const Json& json);

/// In one line. What is no UTF-8 in it is replaced.
std::string text_of(const Json& json);

}  // namespace ebbtide
