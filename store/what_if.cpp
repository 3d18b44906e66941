#include <ebbtide/store/course.h>
#include <ebbtide/store/error.h>
#include <ebbtide/store/what_if.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <variant>

namespace ebbtide {
namespace {

constexpr Bytes kNoLimit{std::numeric_limits<int64_t>::max()};

/// Host memory, as stores number their devices.
constexpr size_t kHost = 0;

std::vector<Bytes> saved_by_device(const Profile& profile, size_t devices) {
  std::vector<Bytes> saved(devices);
  for (const ProfiledRecord& record : profile.records) saved[record.device] += record.bytes;
  return saved;
}

std::vector<SavedProfile::Device> devices_of(const SavedProfile& saved) {
  if (!saved.devices.empty()) return saved.devices;
  uint32_t last = 0;
  for (const ProfiledRecord& record : saved.profile.records) last = std::max(last, record.device);
  std::vector<SavedProfile::Device> devices;
  for (uint32_t i = 0; i <= last; ++i) devices.push_back({"device " + std::to_string(i), {}});
  for (SavedProfile::Device& device : devices) device.on.budgets.device = kNoLimit;
  return devices;
}

LaneSpeed at_speed(double alone, const std::optional<LaneSpeed>& measured) {
  return {alone, measured ? alone * (measured->duplex / measured->alone) : alone};
}

void set_link(Machine& machine, double bandwidth) {
  const auto& known = machine.link;
  machine.link =
      LinkModel{at_speed(bandwidth, known ? std::optional(known->out) : std::nullopt),
                at_speed(bandwidth, known ? std::optional(known->in) : std::nullopt), known ? known->latency_s : 0};
}

void set_disk(Conditions& on, const Speeds& speeds, bool host) {
  auto& disk = on.machine.disk;
  if (!disk) {
    disk = DiskModel{.write = speeds.disk_write.value_or(speeds.disk_read.value_or(0)),
                     .read = speeds.disk_read.value_or(speeds.disk_write.value_or(0)),
                     .compute_s_per_byte = host ? kComputeSecondsPerByte : 0};
    if (on.budgets.spill == Bytes(0)) on.budgets.spill = kNoLimit;
  }
  disk->write = speeds.disk_write.value_or(disk->write);
  disk->read = speeds.disk_read.value_or(disk->read);
}

Bytes budget_of(const Options& options, Bytes known, Bytes saved) {
  if (!options.device_budget) return std::min(known, saved);
  if (const Bytes* bytes = std::get_if<Bytes>(&*options.device_budget)) return *bytes;
  const double share = std::get<Share>(*options.device_budget).value;
  return Bytes(static_cast<int64_t>(static_cast<double>(saved.count()) * share));
}

Bytes staying(const Profile& profile, const std::vector<Action>& actions, size_t device) {
  Bytes sum;
  for (size_t i = 0; i < actions.size(); ++i) {
    const ProfiledRecord& record = profile.records[i];
    if (record.device == device && record.mobility != Mobility::kElsewhere && actions[i] == Action::kKeep)
      sum += record.bytes;
  }
  return sum;
}

/// What a plan keeps at the scope's end, and has no budget for; and what in vain it wants to leave, but for the one tensor
/// that the backward begins with.
Bytes over(const Course& course, size_t device) {
  const auto& [machine, budgets] = course.on[device];
  const std::vector<Action>& planned = course.plans[device].actions;
  Simulator simulator(course.profile, machine, budgets, static_cast<uint32_t>(device));
  (void)simulator.run(planned);
  Bytes largest;
  for (const ProfiledRecord& record : course.profile.records)
    if (record.device == device) largest = std::max(largest, record.bytes);
  const Bytes held =
      std::max(staying(course.profile, planned, device), staying(course.profile, simulator.became(), device) - largest);
  return std::max(Bytes(0), held - budgets.device);
}

}  // namespace

void set_speed(Speeds& speeds, std::string_view name, std::string_view value) {
  constexpr std::string_view kEach = "/s";
  const std::string_view size = value.ends_with(kEach) ? value.substr(0, value.size() - kEach.size()) : value;
  const auto bytes = parse_bytes(size);
  if (!bytes || *bytes < Bytes(1))
    throw ConfigError(std::string(name) + "='" + std::string(value) +
                      "' is not valid: accepted is bytes a second, such as 25000000000, '25GB/s' or '3.5GiB/s'");
  const auto speed = static_cast<double>(bytes->count());
  if (name == "link_bandwidth")
    speeds.link_bandwidth = speed;
  else if (name == "disk_write")
    speeds.disk_write = speed;
  else if (name == "disk_read")
    speeds.disk_read = speed;
  else
    throw ConfigError("there is no speed '" + std::string(name) +
                      "': there are link_bandwidth, disk_write and disk_read");
}

WhatIf what_if(const SavedProfile& saved, const Options& options, const Speeds& speeds) {
  const auto devices = devices_of(saved);
  const auto bytes = saved_by_device(saved.profile, devices.size());
  if (speeds.link_bandwidth && devices.size() == 1)
    throw ConfigError("link_bandwidth: there is no link, for all of the profile lies in host memory");
  std::vector<Conditions> on;
  std::vector<std::string> names;
  for (size_t i = 0; i < devices.size(); ++i) {
    Conditions here = devices[i].on;
    names.push_back(devices[i].name);
    if (speeds.link_bandwidth && i != kHost) set_link(here.machine, *speeds.link_bandwidth);
    if (speeds.disk_write || speeds.disk_read) set_disk(here, speeds, i == kHost);
    here.budgets.device = budget_of(options, here.budgets.device, bytes[i]);
    here.budgets.host = options.host_budget.value_or(here.budgets.host);
    here.budgets.spill = options.spill_budget.value_or(here.budgets.spill);
    on.push_back(std::move(here));
  }
  const Course course = make_course(saved.profile, std::move(on), options.recompute.value_or(saved.recompute));

  WhatIf answer;
  answer.seconds = course.predicted_s;
  answer.compute_s = course.profile.seconds;
  answer.lower_bound_s = course.lower_bound_s;
  answer.records = planned_records(course, names);
  for (size_t i = 0; i < devices.size(); ++i) {
    const Simulated& predicted = course.plans[i].predicted;
    answer.host_peak += predicted.host_peak;
    answer.spill_peak += predicted.written;  // it stays there until it dies
    answer.stall_s += predicted.stall_s;
    answer.recompute_s += predicted.recompute_s;
    answer.copying_s += predicted.copying_s;
    if (bytes[i] > Bytes(0))
      answer.devices.push_back(
          {names[i], bytes[i], course.on[i].budgets.device, predicted.device_peak, over(course, i)});
  }
  return answer;
}

}  // namespace ebbtide
