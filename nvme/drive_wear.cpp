#include <ebbtide/nvme/drive_wear.h>
#include <ebbtide/nvme/spill_file.h>

#include <fcntl.h>
#include <linux/nvme_ioctl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <set>

namespace ebbtide::nvme {
namespace {

namespace fs = std::filesystem;

/// `device`: its folder in /sys.
void add_drives(const fs::path& device, std::vector<std::string>& drives) {
  std::error_code error;
  const bool partition = fs::exists(device / "partition", error);
  const fs::path disk = partition ? device.parent_path() : device;
  const std::string name = disk.filename();
  if (name.compare(0, 4, "nvme") == 0) {
    if (std::find(drives.begin(), drives.end(), name) == drives.end()) drives.push_back(name);
    return;
  }
  for (fs::directory_iterator below(disk / "slaves", error), end; !error && below != end; below.increment(error)) {
    const fs::path next = fs::canonical(below->path(), error);
    if (!error) add_drives(next, drives);
  }
}

}  // namespace

std::vector<std::string> drives_beneath(const std::string& folder, const std::string& system_root) {
  std::vector<std::string> drives;
  struct stat status {};
  if (::stat(folder.c_str(), &status) != 0) return drives;
  const std::string number = std::to_string(major(status.st_dev)) + ":" + std::to_string(minor(status.st_dev));
  std::error_code error;
  const fs::path device = fs::canonical(system_root + "/sys/dev/block/" + number, error);
  if (!error) add_drives(device, drives);
  std::sort(drives.begin(), drives.end());
  return drives;
}

int command_drive(const std::string& drive, nvme_passthru_cmd& command) {
  const int fd = ::open(("/dev/" + drive).c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  const int answer = ::ioctl(fd, NVME_IOCTL_ADMIN_CMD, &command);
  const int error = answer < 0 ? errno : answer == 0 ? 0 : EIO;  // above 0 it is the drive that refuses
  ::close(fd);
  return error;
}

Result<DriveWear> read_drive_wear(const std::string& drive, const DriveCommand& command) {
  constexpr uint8_t kGetLogPage = 0x02, kSmartLog = 0x02;
  constexpr size_t kUsedAt = 5, kWrittenAt = 48;
  constexpr int64_t kUnit = 512'000;  // in which the drive counts what is written
  std::array<uint8_t, 512> log{};
  nvme_passthru_cmd ask{};
  ask.opcode = kGetLogPage;
  ask.nsid = 0xffffffff;  // the drive's, not a namespace's
  ask.addr = reinterpret_cast<uintptr_t>(log.data());
  ask.data_len = log.size();
  ask.cdw10 = (log.size() / 4 - 1) << 16 | kSmartLog;  // how many words, less one, and of which log
  if (const int error = command(drive, ask); error != 0)
    return system_failure(FailureCode::kUnsupported, error, "How worn " + drive + " is cannot be read");

  uint64_t units = 0;  // little-endian, of 16 bytes; the upper ones stay 0 for longer than a drive lives
  for (size_t byte = 8; byte-- > 0;) units = units << 8 | log[kWrittenAt + byte];
  DriveWear wear;
  wear.written =
      Bytes(static_cast<int64_t>(std::min<uint64_t>(units, std::numeric_limits<int64_t>::max() / kUnit)) * kUnit);
  wear.used_percent = log[kUsedAt];
  if (wear.used_percent >= 5) wear.endurance = Bytes(wear.written.count() / wear.used_percent) * 100;
  return wear;
}

std::optional<Bytes> endurance_left(const std::vector<std::string>& folders, const DriveCommand& command,
                                    const std::string& system_root) {
  std::set<std::string> drives;
  for (const std::string& folder : folders) {
    const std::vector<std::string> beneath = drives_beneath(folder, system_root);
    if (beneath.empty()) return std::nullopt;
    drives.insert(beneath.begin(), beneath.end());
  }
  if (drives.empty()) return std::nullopt;
  Bytes left;
  for (const std::string& drive : drives) {
    const Result<DriveWear> wear = read_drive_wear(drive, command);
    if (!wear.ok() || !wear.value().endurance) return std::nullopt;
    left += std::max(*wear.value().endurance - wear.value().written, Bytes(0));
  }
  return left;
}

}  // namespace ebbtide::nvme
