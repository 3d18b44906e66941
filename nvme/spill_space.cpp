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
  auto space = std::shared_ptr<SpillSpace>(new SpillSpace(std::move(files), alignment, budget, options.reserve));
  if (space->budget_ == 0) {
    return Failure{FailureCode::kNoSpace, 0,
                   "The spill budget of " + text(budget) + " in " + options.folders.front() + " holds nothing."};
  }
  return space;
}

SpillSpace::SpillSpace(std::vector<SpillFile> files, IoAlignment alignment, uint64_t budget,
                       std::optional<Bytes> reserve)
    : files_(std::move(files)),
      alignment_(alignment),
      unit_(std::max<uint64_t>(kUnit, alignment.length)),
      budget_(budget / unit_ * unit_),
      reserve_(reserve),
      owner_(::getpid()) {
  for (const SpillFile& file : files_) {
    Room& room = rooms_.emplace_back(Room{ExtentAllocator(unit_)});
    struct statvfs space {};
    if (::fstatvfs(file.fd(), &space) == 0) {
      room.free_space = static_cast<double>(space.f_bavail) * static_cast<double>(space.f_frsize);
    }
  }
  set_shares_locked();
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
  if (auto extents = take_locked(rounded, Spread::kByShare)) return *std::move(extents);
  lock.unlock();

  std::lock_guard grow_lock(grow_mutex_);
  for (Status grown = success();;) {
    lock.lock();
    if (auto extents = take_locked(rounded, Spread::kByShare)) return *std::move(extents);
    lock.unlock();
    if (grown) grown = grow(rounded);
    lock.lock();
    if (auto extents = take_locked(rounded, grown ? Spread::kByShare : Spread::kAsRoomGoes)) return *std::move(extents);
    lock.unlock();
    if (!grown) return std::move(grown).failure();
  }
}

/// What may be added to a file: the limit on this process's files, and what is to be left free for others.
uint64_t SpillSpace::may_grow(const SpillFile& file) const {
  constexpr uint64_t kMostReserve = uint64_t{1} << 30;
  const uint64_t limit = file_size_limit();
  const uint64_t by_limit = limit - std::min(limit, file.size());
  struct statvfs room {};
  if (::fstatvfs(file.fd(), &room) != 0) return by_limit;  // growing will say what is wrong
  const uint64_t reserve = reserve_ ? static_cast<uint64_t>(std::max<int64_t>(reserve_->count(), 0))
                                    : std::min(kMostReserve, uint64_t{room.f_blocks} * room.f_frsize / 32);
  const uint64_t left = uint64_t{room.f_bavail} * room.f_frsize;
  return std::min(by_limit, left - std::min(left, reserve));
}

/// Makes files longer, so that an item of `bytes` has room in each by its share; by less where the disks have less.
/// Errors: nothing was gained. REQUIRES: grow_mutex_ held, mutex_ not.
Status SpillSpace::grow(uint64_t bytes) {
  uint64_t total = 0;
  for (const SpillFile& file : files_) total += file.size();
  const uint64_t left = budget_ - std::min(budget_, total);
  std::vector<uint64_t> wish(files_.size());  // of each file
  uint64_t free_bytes = 0;
  {
    std::lock_guard lock(mutex_);
    const std::vector<uint64_t> wanted = wanted_locked(bytes);
    const auto largest = std::ranges::max_element(rooms_, {}, &Room::share);
    for (size_t i = 0; i < files_.size(); ++i) {
      const uint64_t here = rooms_[i].allocator.free_bytes();
      free_bytes += here;
      if (here >= wanted[i]) continue;
      const double step = static_cast<double>(std::min(kGrowth, budget_ / 16)) * rooms_[i].share / largest->share;
      wish[i] = std::max(static_cast<uint64_t>(step), wanted[i] - here) + unit_;
    }
  }
  const uint64_t missing = bytes - std::min(bytes, free_bytes);
  if (left < missing || left == 0) {
    return Failure{
        FailureCode::kNoSpace, 0,
        "The spill budget of " + text(budget_) + " is full; it would have to be " + text(missing - left) + " larger."};
  }
  const Clock::time_point now = Clock::now();
  Failure last{FailureCode::kNoSpace, 0, "No spill folder has room: each was found full a moment ago."};
  uint64_t gained = 0;
  const auto grow_file = [&](size_t index, uint64_t by) {
    SpillFile& file = files_[index];
    {
      std::lock_guard lock(mutex_);
      if (now < rooms_[index].retry_at) return;
    }
    const uint64_t may = may_grow(file);
    uint64_t step = std::min({by, left - gained, may}) / unit_ * unit_;
    if (may < unit_) {
      last = {FailureCode::kNoSpace, ENOSPC,
              "No room in " + file.folder() + " but what is left free for others, or beyond the limit on file sizes."};
    }
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
  };
  for (size_t index = 0; index < files_.size(); ++index) {
    if (wish[index] > 0) grow_file(index, wish[index]);
  }
  // Those that lack room have found none: the others make up for it.
  for (size_t index = 0; index < files_.size() && gained < missing; ++index) grow_file(index, missing - gained + unit_);
  if (gained == 0) return last;
  return success();
}

/// By its shares, whole chunks of an item of `bytes`, each to whom most is due.
std::vector<uint64_t> SpillSpace::wanted_locked(uint64_t bytes) const {
  std::vector<uint64_t> wanted(rooms_.size());
  std::vector<double> due(rooms_.size());
  for (size_t i = 0; i < rooms_.size(); ++i) due[i] = rooms_[i].due + rooms_[i].share * static_cast<double>(bytes);
  for (uint64_t left = bytes; left > 0;) {
    const auto next = static_cast<size_t>(std::ranges::max_element(due) - due.begin());
    const uint64_t chunk = std::min(kChunkBytes, left);
    wanted[next] += chunk;
    due[next] -= static_cast<double>(chunk);
    left -= chunk;
  }
  return wanted;
}

std::optional<std::vector<PlacedExtent>> SpillSpace::take_locked(uint64_t bytes, Spread spread) {
  const std::vector<uint64_t> wanted = wanted_locked(bytes);
  uint64_t free_bytes = 0;
  bool fits = true;
  for (size_t i = 0; i < rooms_.size(); ++i) {
    free_bytes += rooms_[i].allocator.free_bytes();
    fits &= wanted[i] <= rooms_[i].allocator.free_bytes();
  }
  if (free_bytes < bytes || (!fits && spread == Spread::kByShare)) return std::nullopt;

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
  for (size_t i = 0; i < rooms_.size(); ++i) take(i, wanted[i]);
  for (size_t i = 0; i < rooms_.size(); ++i) take(i, left);
  // Only what could have been had is made up for later.
  if (fits) {
    for (size_t i = 0; i < rooms_.size(); ++i) {
      rooms_[i].due += rooms_[i].share * static_cast<double>(bytes) - static_cast<double>(wanted[i]);
    }
  }
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  return placed;
}

void SpillSpace::note_speed(size_t index, double bytes_per_second) noexcept {
  std::lock_guard lock(mutex_);
  double& mean = rooms_[index].speed;
  mean = mean > 0 ? (mean + bytes_per_second) / 2 : bytes_per_second;
  set_shares_locked();
}

void SpillSpace::set_shares_locked() noexcept {
  // A slow one keeps some, or it would never be seen to be fast again.
  constexpr double kLeast = 1.0 / 32;
  const bool known = std::ranges::all_of(rooms_, [](const Room& room) { return room.speed > 0; });
  double most = 0, sum = 0;
  for (const Room& room : rooms_) most = std::max(most, known ? room.speed : room.free_space);
  for (Room& room : rooms_) {
    room.share = most > 0 ? std::max(kLeast, (known ? room.speed : room.free_space) / most) : 1;
    sum += room.share;
  }
  for (Room& room : rooms_) room.share /= sum;
}

std::vector<double> SpillSpace::shares() const {
  std::lock_guard lock(mutex_);
  std::vector<double> shares;
  for (const Room& room : rooms_) shares.push_back(room.share);
  return shares;
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

Bytes SpillSpace::bytes() const noexcept {
  if (forked()) return Bytes(0);
  std::lock_guard lock(mutex_);
  return Bytes(static_cast<int64_t>(used_));
}

void SpillSpace::report(SpillStats& stats) const {
  std::lock_guard lock(mutex_);
  stats.bytes = Bytes(static_cast<int64_t>(used_));
  stats.peak_bytes = Bytes(static_cast<int64_t>(peak_));
  stats.budget = Bytes(static_cast<int64_t>(budget_));
  stats.quarantined = Bytes(static_cast<int64_t>(quarantined_));
}

}  // namespace ebbtide::nvme
