#include <ebbtide/nvme/spill_space.h>

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <set>

namespace ebbtide::nvme {
namespace {

constexpr uint64_t kUnit = 4096;
constexpr uint64_t kGrowth = uint64_t{256} << 20;
// A full disk is asked again after this time, not at every write: a fallocate that fails is slow.
constexpr std::chrono::seconds kRetryGrowth{1};

IoAlignment strictest(const std::vector<SpillFile>& files) {
  IoAlignment all{1, 1};
  for (const SpillFile& file : files) {
    all.memory = std::max(all.memory, file.alignment().memory);
    all.length = std::max(all.length, file.alignment().length);
  }
  return all;
}

/// 90% of what is free, each file system once.
Result<uint64_t> default_budget(const std::vector<SpillFile>& files) {
  std::set<dev_t> seen;
  uint64_t free_bytes = 0;
  for (const SpillFile& file : files) {
    struct stat status {};
    struct statvfs room {};
    if (::fstat(file.fd(), &status) != 0 || ::fstatvfs(file.fd(), &room) != 0) {
      return system_failure(FailureCode::kIo, errno, "Cannot ask for the free space of " + file.folder());
    }
    if (seen.insert(status.st_dev).second) free_bytes += uint64_t{room.f_bavail} * room.f_frsize;
  }
  return free_bytes / 10 * 9;
}

/// The longest file that this process may write. Beyond it the kernel sends SIGXFSZ, which kills.
uint64_t file_size_limit() {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
    return std::numeric_limits<uint64_t>::max();
  }
  return limit.rlim_cur;
}

std::string text(uint64_t bytes) {
  return to_string(Bytes(static_cast<int64_t>(bytes)));
}

}  // namespace

Result<std::shared_ptr<SpillSpace>> SpillSpace::open(const SpillOptions& options) {
  if (options.folders.empty()) return Failure{FailureCode::kInvalid, 0, "No folder to spill to was given."};
  std::vector<SpillFile> files;
  for (const std::string& folder : options.folders) {
    Result<SpillFile> file = SpillFile::open(folder);
    if (!file) return std::move(file).failure();
    files.push_back(std::move(file).value());
  }
  const IoAlignment alignment = strictest(files);
  uint64_t budget = 0;
  if (options.budget) {
    budget = static_cast<uint64_t>(std::max<int64_t>(options.budget->count(), 0));
  } else {
    Result<uint64_t> free_share = default_budget(files);
    if (!free_share) return std::move(free_share).failure();
    budget = free_share.value();
  }
  auto space = std::shared_ptr<SpillSpace>(new SpillSpace(std::move(files), alignment, budget));
  if (space->budget_ == 0) {
    return Failure{FailureCode::kNoSpace, 0,
                   "The spill budget of " + text(budget) + " in " + options.folders.front() + " holds nothing."};
  }
  return space;
}

SpillSpace::SpillSpace(std::vector<SpillFile> files, IoAlignment alignment, uint64_t budget)
    : files_(std::move(files)),
      alignment_(alignment),
      unit_(std::max<uint64_t>(kUnit, alignment.length)),
      budget_(budget / unit_ * unit_),
      owner_(::getpid()) {
  for (size_t i = 0; i < files_.size(); ++i) rooms_.push_back({ExtentAllocator(unit_), 0, {}});
}

bool SpillSpace::forked() const noexcept {
  return ::getpid() != owner_;
}

bool SpillSpace::ram() const noexcept {
  return std::any_of(files_.begin(), files_.end(), [](const SpillFile& file) { return file.ram(); });
}

Result<std::vector<PlacedExtent>> SpillSpace::allocate(uint64_t bytes) {
  const uint64_t rounded = (bytes + unit_ - 1) / unit_ * unit_;
  std::unique_lock lock(mutex_);
  if (auto extents = take_locked(rounded)) return *std::move(extents);
  lock.unlock();

  std::lock_guard grow_lock(grow_mutex_);
  for (;;) {
    lock.lock();
    if (auto extents = take_locked(rounded)) return *std::move(extents);
    uint64_t free_bytes = 0;
    for (const Room& room : rooms_) free_bytes += room.allocator.free_bytes();
    lock.unlock();
    Status grown = grow(rounded - std::min(rounded, free_bytes));
    if (!grown) return std::move(grown).failure();
  }
}

/// Makes the files longer, by `missing` bytes or more where the disks have them, by less where not. Errors: nothing was
/// gained. REQUIRES: grow_mutex_ held, mutex_ not.
Status SpillSpace::grow(uint64_t missing) {
  uint64_t total = 0;
  for (const SpillFile& file : files_) total += file.size();
  const uint64_t left = budget_ - std::min(budget_, total);
  if (left < missing) {
    return Failure{
        FailureCode::kNoSpace, 0,
        "The spill budget of " + text(budget_) + " is full; it would have to be " + text(missing - left) + " larger."};
  }
  // All files grow together, so that an item is spread over all of them from the first one on.
  const uint64_t limit = file_size_limit();
  const uint64_t wish = std::max(std::min(kGrowth, budget_ / 16), missing / files_.size() + unit_);
  const Clock::time_point now = Clock::now();
  Failure last{FailureCode::kNoSpace, 0, "No spill folder has room: each was found full a moment ago."};
  uint64_t gained = 0;
  for (size_t index = 0; index < files_.size(); ++index) {
    SpillFile& file = files_[index];
    {
      std::lock_guard lock(mutex_);
      if (now < rooms_[index].retry_at) continue;
    }
    uint64_t step = std::min({wish, left - gained, limit - std::min(limit, file.size())}) / unit_ * unit_;
    const uint64_t before = gained;
    // Smaller and smaller steps: what is left on a nearly full disk is used as well.
    while (step > 0) {
      Status grown = file.grow(file.size() + step);
      if (grown) {
        std::lock_guard lock(mutex_);
        rooms_[index].allocator.free({rooms_[index].size, step});
        rooms_[index].size += step;
        gained += step;
        break;
      }
      last = std::move(grown).failure();
      if (last.code != FailureCode::kNoSpace || step == unit_) break;
      step = std::max(step / 2 / unit_ * unit_, unit_);
    }
    if (gained == before) {
      std::lock_guard lock(mutex_);
      rooms_[index].retry_at = now + kRetryGrowth;
    }
  }
  if (gained == 0) return last;
  return success();
}

std::optional<std::vector<PlacedExtent>> SpillSpace::take_locked(uint64_t bytes) {
  uint64_t free_bytes = 0;
  for (const Room& room : rooms_) free_bytes += room.allocator.free_bytes();
  if (free_bytes < bytes) return std::nullopt;

  std::vector<PlacedExtent> placed;
  uint64_t left = bytes;
  const auto take = [&](size_t index, uint64_t share) {
    ExtentAllocator& allocator = rooms_[index].allocator;
    share = std::min({share, left, allocator.free_bytes()});
    if (share == 0) return;
    const auto extents = allocator.allocate(share);
    for (Extent extent : *extents) placed.push_back({static_cast<uint32_t>(index), extent});
    left -= share;
  };
  // Even shares of whole chunks, then whatever is still missing from wherever there is room.
  const size_t count = rooms_.size();
  const uint64_t chunks = (bytes + kChunkBytes - 1) / kChunkBytes;
  const uint64_t share = (chunks + count - 1) / count * kChunkBytes;
  for (size_t i = 0; i < count; ++i) take((first_ + i) % count, share);
  for (size_t i = 0; i < count; ++i) take((first_ + i) % count, left);
  first_ = (first_ + 1) % count;
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  return placed;
}

void SpillSpace::release(const std::vector<PlacedExtent>& extents) noexcept {
  if (forked()) return;
  std::lock_guard lock(mutex_);
  for (const PlacedExtent& placed : extents) {
    used_ -= placed.extent.bytes;
    if (placed.bad) {
      quarantined_ += placed.extent.bytes;
    } else {
      rooms_[placed.file].allocator.free(placed.extent);
    }
  }
}

void SpillSpace::report(SpillStats& stats) const {
  std::lock_guard lock(mutex_);
  stats.bytes = Bytes(static_cast<int64_t>(used_));
  stats.peak_bytes = Bytes(static_cast<int64_t>(peak_));
  stats.budget = Bytes(static_cast<int64_t>(budget_));
  stats.quarantined = Bytes(static_cast<int64_t>(quarantined_));
}

}  // namespace ebbtide::nvme
