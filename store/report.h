// The store's account of itself, for people.
#pragma once

#include <ebbtide/store/planned_record.h>
#include <ebbtide/store/stats.h>

#include <string>
#include <vector>

namespace ebbtide {

struct ReportContext {
  Bytes min_bytes;
  std::string spill;  ///< one line about the spill tier; empty where there is none
  std::vector<PlannedRecord> plan;
  std::string plan_file;  ///< that plans are followed from; empty: they are made of what is seen
};

/// One screen of text: the tiers, what became of what was saved, where time went, and, when nothing was saved, why and
/// what to change.
std::string render_report(const Stats& stats, const PassStats& last_pass, const ReportContext& context);

}  // namespace ebbtide
