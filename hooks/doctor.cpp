#include <ebbtide/hooks/accelerators.h>
#include <ebbtide/hooks/doctor.h>
#include <ebbtide/store/options.h>

#include <utility>

namespace ebbtide {

Diagnosis doctor(std::vector<std::string> folders) {
  DoctorOptions options;
  options.folders = folders.empty() ? resolve({}).spill_to : std::move(folders);
  options.accelerators = accelerators_of_torch();
  return doctor(options);
}

}  // namespace ebbtide
