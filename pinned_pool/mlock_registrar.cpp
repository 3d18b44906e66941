#include <ebbtide/pinned_pool/mlock_registrar.h>

#include <ebbtide/pinned_pool/bytes.h>

#include <sys/mman.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

namespace ebbtide {

Status MlockRegistrar::pin(void* data, size_t bytes) noexcept {
  if (::mlock(data, bytes) == 0) return success();
  const int error = errno;
  const std::string what = "mlock of " + to_string(Bytes(static_cast<int64_t>(bytes))) + " refused: ";
  rlimit limit{};
  // ENOMEM: some of the limit is left, or the kernel is out of mappings; EPERM: the limit is zero; EAGAIN: some pages
  // could not be locked.
  if ((error == ENOMEM || error == EPERM) && ::getrlimit(RLIMIT_MEMLOCK, &limit) == 0 &&
      limit.rlim_cur != RLIM_INFINITY) {
    return Failure{FailureCode::kOverCapacity, error,
                   what + "RLIMIT_MEMLOCK is " + to_string(Bytes(static_cast<int64_t>(limit.rlim_cur))) +
                       "; raise it with `ulimit -l` or memlock in limits.conf"};
  }
  return Failure{FailureCode::kUnsupported, error, what + std::strerror(error)};
}

void MlockRegistrar::unpin(void* data, size_t bytes) noexcept {
  // It can only fail for memory that is not mapped: a bug of the caller, worth a line, not worth the process.
  if (::munlock(data, bytes) != 0) std::perror("ebbtide: munlock");
}

}  // namespace ebbtide
