#include <ebbtide/store/text_file.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

namespace ebbtide {
namespace {

constexpr size_t kMostBytes = size_t{1} << 30;

Failure failed(int error) {
  return {FailureCode::kIo, error, std::strerror(error)};
}

class File {
 public:
  explicit File(int descriptor) noexcept : descriptor_(descriptor) {}
  ~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  bool open() const noexcept { return descriptor_ >= 0; }
  int number() const noexcept { return descriptor_; }
  /// False: what was written may be lost, see errno.
  bool close() noexcept { return ::close(std::exchange(descriptor_, -1)) == 0; }

 private:
  int descriptor_;
};

bool write_all(const File& file, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(file.number(), text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    text.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

/// A pipe, a terminal: nothing is there to be replaced.
bool takes_text_as_it_comes(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode);
}

}  // namespace

Result<std::string> read_text_file(const std::string& path) {
  const File file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.open()) return failed(errno);
  std::string text;
  std::vector<char> part(size_t{1} << 18);
  for (;;) {
    const ssize_t got = ::read(file.number(), part.data(), part.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return failed(errno);
    if (got == 0) return text;
    text.append(part.data(), static_cast<size_t>(got));
    if (text.size() > kMostBytes) return Failure{FailureCode::kInvalid, 0, "it is larger than a gibibyte"};
  }
}

Status write_text_file(const std::string& path, const std::string& text) {
  // Others may write the same file now, threads and the processes of a job.
  static std::atomic<int> files{0};
  const bool as_it_comes = takes_text_as_it_comes(path);
  const std::string to =
      as_it_comes ? path : path + "." + std::to_string(::getpid()) + "-" + std::to_string(++files) + ".partial";
  File file(::open(to.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!file.open()) return failed(errno);
  if (write_all(file, text) && file.close() && (as_it_comes || std::rename(to.c_str(), path.c_str()) == 0))
    return success();
  const int error = errno;
  if (!as_it_comes) ::unlink(to.c_str());
  return failed(error);
}

}  // namespace ebbtide
