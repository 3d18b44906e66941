// What NVMe drives say of how worn they are.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/result.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

struct nvme_passthru_cmd;

namespace ebbtide::nvme {

/// From the drive's SMART log (NVM Express Base Specification, Get Log Page, log 02h).
struct DriveWear {
  Bytes written;         ///< over the drive's life, by all that ever used it
  int used_percent = 0;  ///< of the life that its maker rates it for; may be above 100; 255 is that or more
  /// About how much it takes until that is 100, if it is written to as it has been. None below 5 percent: the drive counts
  /// in whole ones.
  std::optional<Bytes> endurance;
};

/// Has a drive carry out an administrator's command: 0 or an errno. A seam for tests.
using DriveCommand = std::function<int(const std::string& drive, nvme_passthru_cmd& command)>;

/// By the drive's device file.
int command_drive(const std::string& drive, nvme_passthru_cmd& command);

/// The NVMe drives ("nvme0n1") that a folder lies on, also beneath partitions, LUKS, LVM and RAID. None where it lies on
/// others, or the system does not say (btrfs, network and memory file systems).
/// `system_root`: put before /sys.
std::vector<std::string> drives_beneath(const std::string& folder, const std::string& system_root = {});

/// Asks the drive. Errors: kUnsupported (it is the administrator who may).
Result<DriveWear> read_drive_wear(const std::string& drive, const DriveCommand& command = command_drive);

/// About what all the drives beneath these folders can still take of what they are rated for. None where there is a
/// folder on no such drive, or a drive does not say.
std::optional<Bytes> endurance_left(const std::vector<std::string>& folders,
                                    const DriveCommand& command = command_drive, const std::string& system_root = {});

}  // namespace ebbtide::nvme
