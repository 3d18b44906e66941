// Mounts of tests, which nobody else sees and which end with the program, however it ends.
#pragma once

#include <sched.h>
#include <sys/mount.h>

#include <cerrno>
#include <string>

namespace ebbtide::nvme {

/// mount(2), in a mount namespace that the calling process is given at its first mount. 0 or an errno.
inline int mount_here(const std::string& what, const std::string& where, const std::string& type,
                      const std::string& options) {
  static const int apart = ::unshare(CLONE_NEWNS) != 0                                         ? errno
                           : ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ? errno
                                                                                               : 0;
  if (apart != 0) return apart;
  return ::mount(what.c_str(), where.c_str(), type.c_str(), MS_NOSUID | MS_NODEV, options.c_str()) == 0 ? 0 : errno;
}

}  // namespace ebbtide::nvme
