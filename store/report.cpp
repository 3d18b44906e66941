#include <ebbtide/store/report.h>
#include <ebbtide/store/text_line.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <vector>

namespace ebbtide {
namespace {

std::string tier_line(const char* name, const TierStats& tier) {
  return text_line("  %-24s %12s %12s %12s", name, to_string(tier.bytes).c_str(), to_string(tier.peak_bytes).c_str(),
                   to_string(tier.budget_bytes).c_str());
}

std::string count_line(const char* name, const Count& count) {
  return text_line("  %-48s %10lld %12s", name, static_cast<long long>(count.tensors), to_string(count.bytes).c_str());
}

std::string beyond_line(const char* name, Bytes now, Bytes peak) {
  return text_line("  %-24s %12s %12s", name, to_string(now).c_str(), to_string(peak).c_str());
}

/// Why the device's peak is more than its budget: what one node asks for, it has at once.
std::string burst_text(const DeviceStats& device) {
  const Burst& burst = device.burst;
  const std::string budget = "device_budget (" + to_string(device.budget_bytes) + ")";
  const bool compiled = burst.node.find("CompiledFunction") != std::string::npos;
  // Compiled per block, each graph has its share of what the pass saves.
  if (compiled && burst.bytes * 2 >= burst.saved)
    return "On " + device.name + " one compiled graph of " + to_string(burst.bytes) +
           ": its backward asks for all of it at once, whatever " + budget +
           " is. Compile per block: for block in model.blocks: block.compile()\n";
  const std::string who = burst.node.empty() ? "a caller" : "one node of the backward (" + burst.node + ")";
  return "On " + device.name + " " + who + " had " + to_string(burst.bytes) + " of saved tensors at once, over " +
         budget + ".\n";
}

std::vector<std::pair<std::string, Count>> by_bytes(const std::map<std::string, Count>& counts) {
  std::vector<std::pair<std::string, Count>> sorted(counts.begin(), counts.end());
  std::ranges::sort(sorted, [](const auto& a, const auto& b) { return a.second.bytes > b.second.bytes; });
  return sorted;
}

/// "blocks.3.mlp" and its like as one: "blocks.*.mlp".
template <class Sums>
std::map<std::string, Sums> without_numbers(const std::map<std::string, Sums>& regions) {
  std::map<std::string, Sums> folded;
  for (const auto& [name, sums] : regions) {
    std::string pattern;
    for (size_t begin = 0; begin <= name.size();) {
      const size_t end = std::min(name.find('.', begin), name.size());
      const std::string part = name.substr(begin, end - begin);
      const bool number = !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
      pattern += (begin > 0 ? "." : "") + (number ? "*" : part);
      begin = end + 1;
    }
    folded[pattern] += sums;
  }
  return folded;
}

/// What became of what each region saved, the most bytes first; where there are many, those of numbered modules as one.
std::string regions_text(const std::map<std::string, Fates>& regions) {
  const auto all = [](const Fates& fates) {
    return fates.kept.bytes + fates.offloaded.bytes + fates.spilled.bytes + fates.recomputed.bytes;
  };
  constexpr size_t kShown = 24;
  const auto shown = regions.size() > kShown ? without_numbers(regions) : regions;
  std::vector<std::pair<std::string, Fates>> sorted(shown.begin(), shown.end());
  std::ranges::stable_sort(sorted, [&](const auto& a, const auto& b) { return all(a.second) > all(b.second); });
  std::string text = text_line("%-36s %12s %12s %12s %12s", "region", "kept", "offloaded", "spilled", "recomputed");
  for (size_t i = 0; i < std::min(sorted.size(), kShown); ++i) {
    const auto& [name, fates] = sorted[i];
    text += text_line("  %-34s %12s %12s %12s %12s", name.c_str(), to_string(fates.kept.bytes).c_str(),
                      to_string(fates.offloaded.bytes).c_str(), to_string(fates.spilled.bytes).c_str(),
                      to_string(fates.recomputed.bytes).c_str());
  }
  if (sorted.size() > kShown) text += "  and " + std::to_string(sorted.size() - kShown) + " more\n";
  return text;
}

/// What the plan does, by what and why, the most bytes first.
std::string plan_text(const Stats& stats, const std::vector<PlannedRecord>& plan) {
  std::map<std::string, Count> treated;
  for (const PlannedRecord& record : plan) treated[record.action + ": " + record.why].add(record.bytes);
  std::string text = text_line("%-50s %10s %12s", "planned, of a pass", "tensors", "bytes");
  for (const auto& [how, count] : by_bytes(treated)) text += count_line(("  " + how).c_str(), count);
  std::string took = "is under way";
  if (stats.measured_step_s > 0) {
    const double off = stats.measured_step_s / stats.predicted_step_s - 1;
    took = text_of("took %.3f s (%+.1f%%)", stats.measured_step_s, 100 * off);
  }
  return text +
         text_line("a pass was predicted to take %.3f s and %s; by its account no plan takes less than %.3f s",
                   stats.predicted_step_s, took.c_str(), stats.lower_bound_step_s) +
         text_line("and to hold %s at most, and held %s", to_string(stats.predicted_peak_bytes).c_str(),
                   to_string(stats.measured_peak_bytes).c_str());
}

/// Why callers waited, the longest first, and for which ops' tensors.
std::string stalls_text(const Stats& stats) {
  static const std::map<std::string, const char*> kWords{
      {"room", "for a disk to write what is over device_budget"},
      {"host room", "for a disk to take over from full host memory"},
      {"copies", "for copies into host memory that have not run yet"},
      {"return", "for what was asked for before it was back"},
      {"close", "at close, for what was under way"}};
  const auto longest_first = [](const std::map<std::string, Waits>& waits) {
    std::vector<std::pair<std::string, Waits>> sorted(waits.begin(), waits.end());
    std::ranges::sort(sorted, [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
    return sorted;
  };
  const auto waits_line = [](const std::string& what, const Waits& waits) {
    return text_line("  %-48s %10lld %10.3f s", what.c_str(), static_cast<long long>(waits.times), waits.seconds);
  };
  constexpr size_t kOps = 5;
  std::string text;
  for (const auto& [cause, waits] : longest_first(stats.stalls)) {
    text += waits_line(kWords.at(cause), waits);
    if (cause != "return") continue;
    const auto ops = longest_first(stats.returns_waited_for);
    for (size_t i = 0; i < std::min(ops.size(), kOps); ++i) text += waits_line("  " + ops[i].first, ops[i].second);
  }
  const auto regions = longest_first(stats.stalled_regions.size() > kOps ? without_numbers(stats.stalled_regions)
                                                                         : stats.stalled_regions);
  for (size_t i = 0; i < std::min(regions.size(), kOps); ++i)
    text += waits_line("in " + regions[i].first, regions[i].second);
  return text;
}

/// Whose the peak is, of all that the process has on the device.
std::string memory_text(const std::string& device, const MemoryStats& memory, Bytes budget) {
  std::string text = text_line(
      "of %s the process had %s of %s at its peak (when it was last measured), %s of them saved tensors,",
      device.c_str(), to_string(memory.peak).c_str(), to_string(memory.most).c_str(), to_string(memory.saved).c_str());
  text += "  " + memory.at + "\n";
  text += text_line("  without saved tensors %s at most, which leaves them %s", to_string(memory.others).c_str(),
                    to_string(budget).c_str());
  return text;
}

std::string frozen_text(const Stats& stats, const ReportContext& context) {
  const std::string text = "the plan is frozen, from " + context.plan_file;
  if (stats.passes == 0 || !context.plan.empty()) return text + "\n";
  return text + "; the last pass is of no kind that it knows, or had no backward, and followed none\n";
}

std::string link_line(const char* name, const LinkStats& link) {
  const double gib = static_cast<double>(link.bytes.count()) / (1 << 30);
  return text_line("  %-24s %12s %10.2f s %8.2f GiB/s", name, to_string(link.bytes).c_str(), link.busy_s,
                   link.busy_s > 0 ? gib / link.busy_s : 0.0);
}

std::string rated_text(const WearStats& wear) {
  if (wear.days_to_rated <= 0) return "";
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), ", what the disks are rated for in %.0f days", wear.days_to_rated);
  return text.data();
}

}  // namespace

std::string render_report(const Stats& stats, const PassStats& last_pass, const ReportContext& context) {
  std::string text = text_line("Ebbtide: %lld passes, %s saved by autograd", static_cast<long long>(stats.passes),
                               to_string(stats.saved.bytes).c_str());
  text += text_line("%-26s %12s %12s %12s", "tier", "now", "peak", "budget");
  const bool accelerators = stats.devices.size() > 1;
  for (size_t i = accelerators ? 1 : 0; i < stats.devices.size(); ++i)
    text += tier_line(i == 0 ? "device (CPU tensors)" : stats.devices[i].name.c_str(), stats.devices[i]);
  if (accelerators && stats.devices[0].peak_bytes > Bytes(0)) text += tier_line("CPU tensors", stats.devices[0]);
  text += tier_line(accelerators ? "host" : "host (staging)", stats.host);
  if (!stats.host_pageable_because.empty())
    text += "  not all of it is pinned, so that copies are slow and waited for: " + stats.host_pageable_because + "\n";
  if (stats.host_other_node > 0)
    text += text_line("  %lld blocks lie on another NUMA node than their device, since its own was full",
                      static_cast<long long>(stats.host_other_node));
  text += tier_line("spill", stats.spill);
  if (!context.spill.empty()) text += "  " + context.spill + "\n";

  if (stats.handed_over_peak + stats.referenced_elsewhere_peak + stats.recipe_bytes_peak > Bytes(0)) {
    text += text_line("%-26s %12s %12s", "alive, in no budget", "now", "peak");
    text += beyond_line("handed over to nodes", stats.handed_over, stats.handed_over_peak);
    text += beyond_line("referenced elsewhere", stats.referenced_elsewhere, stats.referenced_elsewhere_peak);
    if (stats.recipe_bytes_peak > Bytes(0))
      text += beyond_line("held by recipes", stats.recipe_bytes, stats.recipe_bytes_peak);
    text += beyond_line("with what budgets hold", stats.device.bytes + stats.handed_over + stats.referenced_elsewhere,
                        stats.alive_peak);
  }

  text += text_line("%-50s %10s %12s", "what became of it", "tensors", "bytes");
  text += count_line("saved", stats.saved);
  text += count_line("  kept", stats.kept);
  text += count_line("  offloaded", stats.offloaded);
  text += count_line("  spilled", stats.spilled);
  text += count_line("  recomputed", stats.recomputed);
  for (const auto& [op, count] : by_bytes(stats.recomputed_ops)) text += count_line(("    " + op).c_str(), count);
  text += count_line("another view of a record", stats.deduplicated);
  text += count_line("passed through", stats.passed_through);
  for (const auto& [reason, count] : by_bytes(stats.passed_through_reasons))
    text += count_line(("  " + reason).c_str(), count);
  for (const auto& [op, sites] : stats.unequal_redos)
    text += text_line("%s: %lld call sites give other bits when run again, and are stored", op.c_str(),
                      static_cast<long long>(sites));

  if (!stats.regions.empty()) text += regions_text(stats.regions);

  if (stats.d2h.bytes > Bytes(0)) {
    text += text_line("%-26s %12s %12s %14s", "device link", "bytes", "busy", "speed");
    text += link_line("out", stats.d2h);
    text += link_line("in", stats.h2d);
  }
  if (stats.disk_write.bytes > Bytes(0)) {
    text += text_line("%-26s %12s %12s %14s", "disk", "bytes", "busy", "speed");
    text += link_line("written", stats.disk_write);
    text += link_line("read", stats.disk_read);
    text += text_line("  written: %s a pass, %s a day at this pace%s", to_string(stats.wear.a_pass).c_str(),
                      to_string(stats.wear.a_day).c_str(), rated_text(stats.wear).c_str());
  }
  if (!context.plan_file.empty()) text += frozen_text(stats, context);
  if (!context.plan.empty() && stats.predicted_step_s > 0) text += plan_text(stats, context.plan);
  text += text_line("callers waited %.3f s in all; %.3f s in the last pass", stats.stall_s, last_pass.stall_s);
  text += stalls_text(stats);

  for (const DeviceStats& device : stats.devices) {
    if (device.memory.most > Bytes(0)) text += memory_text(device.name, device.memory, device.budget_bytes);
    if (device.burst.bytes > Bytes(0)) text += burst_text(device);
  }

  const Count moved{stats.spilled.tensors + stats.offloaded.tensors, stats.spilled.bytes + stats.offloaded.bytes};
  if (stats.passes > 0 && moved.tensors == 0 && stats.recomputed.tensors == 0) {
    if (stats.saved.tensors == 0)
      text +=
          "Nothing moved: autograd saved no tensor that may. See the reasons under 'passed through'; small ones move "
          "with a lower min_bytes (now " +
          to_string(context.min_bytes) + ").\n";
    else if (stats.device.peak_bytes < stats.device.budget_bytes)
      text += "Nothing moved: at most " + to_string(stats.device.peak_bytes) +
              " were held, which is within device_budget (" + to_string(stats.device.budget_bytes) +
              "). Lower it to save memory.\n";
    else if (context.spill.empty())
      text += "Nothing moved: there is nowhere to go. Name a folder on a disk in spill_to.\n";
  }
  if (stats.passes == 0 && stats.packed.tensors == 0)
    text +=
        "No pass yet: autograd saved nothing inside this store. Is the forward under `with store:`, an OffloadScope or "
        "an attached model, with gradients on?\n";
  return text;
}

}  // namespace ebbtide
