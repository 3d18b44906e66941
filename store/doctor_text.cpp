// A diagnosis in writing.
#include <ebbtide/store/doctor.h>
#include <ebbtide/store/json.h>
#include <ebbtide/store/text_line.h>

namespace ebbtide {
namespace {

std::string speed_text(double bytes_per_second) {
  return to_string(Bytes(static_cast<int64_t>(bytes_per_second))) + "/s";
}

std::string name_of(NumaNode node) {
  return std::to_string(static_cast<int>(node));
}

std::string text_of(const Diagnosis::Accelerator& accelerator) {
  std::string text = text_line("%s", accelerator.name.c_str());
  if (!accelerator.pci_address.empty())
    text +=
        text_line("  %s, %s", accelerator.pci_address.c_str(),
                  accelerator.node ? ("near NUMA node " + name_of(*accelerator.node)).c_str() : "NUMA node not known");
  if (accelerator.memory > Bytes(0))
    text += text_line("  %s of %s free", to_string(accelerator.free).c_str(), to_string(accelerator.memory).c_str());
  if (accelerator.link)
    text += text_line("  link: %s out, %s in; both at once %s and %s", speed_text(accelerator.link->out).c_str(),
                      speed_text(accelerator.link->in).c_str(), speed_text(accelerator.link->out_with_in).c_str(),
                      speed_text(accelerator.link->in_with_out).c_str());
  if (!accelerator.refused.empty()) text += "  " + accelerator.refused + "\n";
  return text;
}

std::string text_of(const Diagnosis::Drive& drive) {
  if (!drive.wear) return "  " + drive.refused + "\n";
  const nvme::DriveWear& wear = *drive.wear;
  std::string text = "  " + drive.name + ": " + to_string(wear.written) + " written so far, " +
                     std::to_string(wear.used_percent) + "% of its rated life used";
  if (wear.endurance) text += ": rated for about " + to_string(*wear.endurance);
  return text + "\n";
}

std::string text_of(const Diagnosis::Folder& folder) {
  std::string text = text_line("%s, %s free", folder.path.c_str(), to_string(folder.free).c_str());
  if (!folder.description.empty()) text += "  " + folder.description + "\n";
  if (folder.speed)
    text += text_line("  writes %s, reads %s", speed_text(folder.speed->write).c_str(),
                      speed_text(folder.speed->read).c_str());
  for (const auto& drive : folder.drives) text += text_of(drive);
  if (!folder.refused.empty()) text += "  " + folder.refused + "\n";
  return text;
}

Json or_null(const std::string& text) {
  return text.empty() ? Json() : Json(text);
}

Json json_of(const Diagnosis::Accelerator& accelerator) {
  Json json = {{"name", accelerator.name},
               {"pci_address", or_null(accelerator.pci_address)},
               {"numa_node", accelerator.node ? Json(static_cast<int>(*accelerator.node)) : Json()},
               {"free_bytes", accelerator.free.count()},
               {"memory_bytes", accelerator.memory.count()},
               {"link", Json()},
               {"refused", or_null(accelerator.refused)}};
  if (accelerator.link)
    json["link"] = {{"out", accelerator.link->out},
                    {"in", accelerator.link->in},
                    {"out_with_in", accelerator.link->out_with_in},
                    {"in_with_out", accelerator.link->in_with_out}};
  return json;
}

Json json_of(const Diagnosis::Drive& drive) {
  Json json = {{"name", drive.name},
               {"written_bytes", Json()},
               {"used_percent", Json()},
               {"endurance_bytes", Json()},
               {"refused", or_null(drive.refused)}};
  if (!drive.wear) return json;
  json["written_bytes"] = drive.wear->written.count();
  json["used_percent"] = drive.wear->used_percent;
  if (drive.wear->endurance) json["endurance_bytes"] = drive.wear->endurance->count();
  return json;
}

Json json_of(const Diagnosis::Folder& folder) {
  Json json = {{"path", folder.path},
               {"description", or_null(folder.description)},
               {"free_bytes", folder.free.count()},
               {"ram", folder.ram},
               {"io_uring", folder.io_uring},
               {"write", Json()},
               {"read", Json()},
               {"drives", Json::array()},
               {"refused", or_null(folder.refused)}};
  for (const auto& drive : folder.drives) json["drives"].push_back(json_of(drive));
  if (folder.speed) {
    json["write"] = folder.speed->write;
    json["read"] = folder.speed->read;
  }
  return json;
}

}  // namespace

std::string to_text(const Diagnosis& found) {
  std::string text = text_line("%-46s %12s %12s", "host memory, by what bounds it", "left", "of");
  for (const auto& bound : found.memory)
    text += text_line("  %-44s %12s %12s", bound.where.c_str(), to_string(bound.left).c_str(),
                      to_string(bound.limit).c_str());
  if (found.memory.empty()) text += "  no bound that can be read\n";
  for (const auto& node : found.nodes)
    text += text_line("  %-44s %12s %12s", ("NUMA node " + name_of(node.number)).c_str(), to_string(node.left).c_str(),
                      to_string(node.memory).c_str());
  text +=
      text_line("budgets where none are given: device_budget %s for CPU tensors, host_budget %s with an accelerator",
                to_string(found.device_budget).c_str(), to_string(found.host_budget).c_str());
  text += "binding to NUMA nodes: " + (found.unbound_because.empty() ? "works" : found.unbound_because) + "\n";
  text += text_line("huge pages: %s; memory that may be locked: %s; jemalloc %s",
                    found.huge_pages.empty() ? "not known" : found.huge_pages.c_str(),
                    found.memlock ? to_string(*found.memlock).c_str() : "no limit", found.jemalloc.c_str());
  if (found.accelerators.empty()) text += "no accelerator: tensors in host memory go to disk\n";
  for (const auto& accelerator : found.accelerators) text += text_of(accelerator);
  for (const auto& folder : found.folders) text += text_of(folder);
  if (found.advice.empty()) return text + "Nothing is held back.\n";
  text += "What would help:\n";
  for (const std::string& sentence : found.advice) text += "- " + sentence + "\n";
  return text;
}

std::string to_json(const Diagnosis& found) {
  Json json = {{"memory", Json::array()},
               {"device_budget_bytes", found.device_budget.count()},
               {"host_budget_bytes", found.host_budget.count()},
               {"numa_nodes", Json::array()},
               {"unbound_because", or_null(found.unbound_because)},
               {"huge_pages", or_null(found.huge_pages)},
               {"memlock_bytes", found.memlock ? Json(found.memlock->count()) : Json()},
               {"jemalloc", found.jemalloc},
               {"devices", Json::array()},
               {"folders", Json::array()},
               {"advice", found.advice}};
  for (const auto& bound : found.memory)
    json["memory"].push_back(
        {{"where", bound.where}, {"left_bytes", bound.left.count()}, {"limit_bytes", bound.limit.count()}});
  for (const auto& node : found.nodes)
    json["numa_nodes"].push_back({{"node", static_cast<int>(node.number)},
                                  {"left_bytes", node.left.count()},
                                  {"memory_bytes", node.memory.count()}});
  for (const auto& accelerator : found.accelerators) json["devices"].push_back(json_of(accelerator));
  for (const auto& folder : found.folders) json["folders"].push_back(json_of(folder));
  return text_of(json);
}

}  // namespace ebbtide
