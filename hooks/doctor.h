// What this machine offers to a store, with the accelerators that torch sees.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/doctor.h>

#include <string>
#include <vector>

namespace ebbtide {

/// Looks, and measures each accelerator's link and for about a second each folder; without folders, those that
/// EBBTIDE_SPILL_TO names. Print it with to_text().
/// Threads: any; not beside a training, which it would disturb and be disturbed by.
EBBTIDE_API Diagnosis doctor(std::vector<std::string> folders = {});

}  // namespace ebbtide
