// What lies below an accelerator's memory for one record: its copy in host memory, and the copies on their way.
#pragma once

#include <ebbtide/store/host_copy.h>
#include <ebbtide/store/intrusive_list.h>
#include <ebbtide/transfer/copy_job.h>
#include <ebbtide/transfer/device_storage.h>

#include <memory>

namespace ebbtide {

class Record;
class StoreCore;

/// What one copy job keeps alive, in slots that the store may empty earlier. Guarded by the core's lock.
struct Passage {
  std::weak_ptr<StoreCore> core;           ///< in a slot here it makes the job's `done` small enough for no heap
  Record* record = nullptr;                ///< null once the record died, or no longer wants this copy
  std::shared_ptr<HostCopy> memory;        ///< until the job has ended
  std::shared_ptr<DeviceStorage> storage;  ///< until the job has ended, or streams order what comes after it
};

/// Guarded by the core's lock. In the core's list of host copies while `memory` is there.
struct LowerCopy : ListLink<LowerCopy> {
  Record* record = nullptr;
  std::shared_ptr<HostCopy> memory;  ///< holds the bytes, or will when `out` has passed
  CopyJobPtr out;                    ///< the copy that filled it first; null before, and if it ended within submit()
  CopyJobPtr in;                     ///< the copy that goes with `returning`; null until it was submitted
  std::shared_ptr<Passage> leaving;  ///< null when there is none, or it has ended
  std::shared_ptr<Passage> returning;
  bool sinking = false;     ///< the disk reads it
  bool lifting = false;     ///< the disk fills memory that will become `memory`
  bool copying_in = false;  ///< a thread is about to submit `in`

  bool passed_out() const noexcept { return leaving == nullptr || (out && out->state() == CopyState::kPassed); }
};

}  // namespace ebbtide
