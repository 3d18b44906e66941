#include <ebbtide/nvme/drive_wear.h>
#include <gmock/gmock.h>
#include <linux/nvme_ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <cstring>

#include "spill_fixture.h"
#include "tests/pinned_pool/system_tree.h"

namespace ebbtide::nvme {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// Drives as /sys shows them, and a folder that lies on one of its devices.
class DriveWearTest : public ::testing::Test {
 protected:
  /// "nvme0n1/nvme0n1p2": as below /sys/devices.
  void device(const std::string& path, bool partition = false) {
    tree_.write("/sys/devices/" + path + "/dev", "1:1\n");
    if (partition) tree_.write("/sys/devices/" + path + "/partition", "2\n");
  }
  void link(const std::string& to, const std::string& from) {
    const std::filesystem::path link = tree_.root() + from;
    std::filesystem::create_directories(link.parent_path());
    std::filesystem::create_symlink(tree_.root() + "/sys/devices/" + to, link);
  }
  void folder_lies_on(const std::string& path) {
    struct stat status {};
    ASSERT_EQ(::stat(folder_.path().c_str(), &status), 0);
    link(path, "/sys/dev/block/" + std::to_string(major(status.st_dev)) + ":" + std::to_string(minor(status.st_dev)));
  }
  std::vector<std::string> drives() const { return drives_beneath(folder_.path(), tree_.root()); }

  test::SystemTree tree_;
  Folder folder_;
};

TEST_F(DriveWearTest, AFolderOnAPartitionLiesOnItsDrive) {
  device("pci0/nvme/nvme0/nvme0n1");
  device("pci0/nvme/nvme0/nvme0n1/nvme0n1p2", true);
  folder_lies_on("pci0/nvme/nvme0/nvme0n1/nvme0n1p2");
  EXPECT_THAT(drives(), ElementsAre("nvme0n1"));
}

TEST_F(DriveWearTest, EveryDriveBeneathARaidIsFoundOnce) {
  for (const std::string drive : {"nvme1n1", "nvme0n1"}) {
    device(drive);
    device(drive + "/" + drive + "p1", true);
    device(drive + "/" + drive + "p2", true);
    for (const std::string part : {"p1", "p2"})
      link(drive + "/" + drive + part, "/sys/devices/md0/slaves/" + drive + part);
  }
  link("md0", "/sys/devices/dm-0/slaves/md0");
  folder_lies_on("dm-0");
  EXPECT_THAT(drives(), ElementsAre("nvme0n1", "nvme1n1"));
}

TEST_F(DriveWearTest, OtherDisksHaveNone) {
  EXPECT_THAT(drives(), IsEmpty());
  device("virtio0/vda");
  folder_lies_on("virtio0/vda");
  EXPECT_THAT(drives(), IsEmpty());
  EXPECT_THAT(drives_beneath("/nowhere", tree_.root()), IsEmpty());
}

/// A drive that has taken so many units of 512,000 bytes, and is so worn.
DriveCommand drive(uint64_t units, uint8_t used) {
  return [=](const std::string& name, nvme_passthru_cmd& command) {
    EXPECT_EQ(name, "nvme0n1");
    EXPECT_EQ(command.opcode, 2);
    EXPECT_EQ(command.nsid, ~uint32_t{0});
    EXPECT_EQ(command.cdw10, 0x007f0002u) << "128 words of log 2";
    EXPECT_EQ(command.data_len, 512u);
    auto* log = reinterpret_cast<unsigned char*>(static_cast<uintptr_t>(command.addr));
    log[5] = used;
    std::memcpy(log + 48, &units, sizeof units);
    return 0;
  };
}

TEST_F(DriveWearTest, IsWhatTheDriveSays) {
  const auto wear = read_drive_wear("nvme0n1", drive(80'000'000, 7));
  ASSERT_TRUE(wear) << wear.failure().message;
  EXPECT_EQ(wear.value().written, Bytes(40'960'000'000'000));
  EXPECT_EQ(wear.value().used_percent, 7);
  ASSERT_TRUE(wear.value().endurance);
  EXPECT_NEAR(static_cast<double>(wear.value().endurance->count()), 40.96e12 / 0.07, 1e3);
}

TEST_F(DriveWearTest, OfAYoungDriveTheEnduranceIsNotGuessed) {
  const auto wear = read_drive_wear("nvme0n1", drive(1'000, 4));
  ASSERT_TRUE(wear);
  EXPECT_EQ(wear.value().used_percent, 4);
  EXPECT_FALSE(wear.value().endurance);
}

TEST_F(DriveWearTest, WhatIsLeftIsThatOfAllDrivesTogether) {
  for (const std::string drive : {"nvme0n1", "nvme1n1"}) {
    device(drive);
    link(drive, "/sys/devices/md0/slaves/" + drive);
  }
  device("md0");
  folder_lies_on("md0");
  const Folder elsewhere;  // on the same ones
  const std::vector<std::string> folders = {folder_.path(), elsewhere.path()};
  uint8_t used = 25;
  const DriveCommand drive = [&](const std::string& name, nvme_passthru_cmd& command) {
    auto* log = reinterpret_cast<unsigned char*>(static_cast<uintptr_t>(command.addr));
    log[5] = name == "nvme0n1" ? 50 : used;
    log[48 + 2] = 16;  // 2^20 units of 512,000 bytes
    return 0;
  };
  const double written = 512e3 * (1 << 20);
  const auto left = endurance_left(folders, drive, tree_.root());
  ASSERT_TRUE(left);
  EXPECT_NEAR(static_cast<double>(left->count()), written + 3 * written, 1e3);
  used = 130;  // worn beyond what it is rated for
  EXPECT_NEAR(static_cast<double>(endurance_left(folders, drive, tree_.root())->count()), written, 1e3);
  used = 1;
  EXPECT_FALSE(endurance_left(folders, drive, tree_.root())) << "one is too young to say";
  EXPECT_FALSE(endurance_left({"/nowhere"}, drive, tree_.root()));
}

TEST_F(DriveWearTest, WhoMayNotAskIsTold) {
  const auto refused = read_drive_wear("nvme0n1", [](const std::string&, nvme_passthru_cmd&) { return EACCES; });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.failure().code, FailureCode::kUnsupported);
  EXPECT_EQ(refused.failure().system_errno, EACCES);
  EXPECT_THAT(refused.failure().message, HasSubstr("nvme0n1"));
  const auto missing = read_drive_wear("nvme-that-is-not-there");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.failure().system_errno, ENOENT);
}

}  // namespace
}  // namespace ebbtide::nvme
