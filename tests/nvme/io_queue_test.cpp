// One contract, both queues.
#include "spill_fixture.h"

#include <ebbtide/nvme/thread_queue.h>
#include <ebbtide/nvme/uring_queue.h>
#include <fcntl.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>

namespace ebbtide::nvme {
namespace {

/// Hands out what the test puts in, and remembers how each ended. Its death says that the queue's threads have ended.
class ListSource final : public IoSource {
 public:
  explicit ListSource(std::promise<void>* gone) : gone_(gone) {}
  ~ListSource() override { gone_->set_value(); }

  Next next(IoRequest& request) noexcept override {
    std::lock_guard lock(mutex_);
    if (requests_.empty()) return finished_ && in_flight_ == 0 ? Next::kFinished : Next::kNothing;
    request = requests_.front();
    requests_.pop_front();
    ++in_flight_;
    most_in_flight_ = std::max(most_in_flight_, in_flight_);
    return Next::kRequest;
  }
  void completed(const IoRequest& request, int error) noexcept override {
    std::lock_guard lock(mutex_);
    --in_flight_;
    EXPECT_TRUE(errors_.emplace(request.segment, error).second) << "completed twice";
    changed_.notify_all();
  }

  void put(const IoRequest& request) {
    std::lock_guard lock(mutex_);
    requests_.push_back(request);
  }
  void finish() {
    std::lock_guard lock(mutex_);
    finished_ = true;
  }
  std::map<uint32_t, int> wait_for(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return errors_.size() >= count; });
    return errors_;
  }
  int most_in_flight() {
    std::lock_guard lock(mutex_);
    return most_in_flight_;
  }

 private:
  std::promise<void>* gone_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<IoRequest> requests_;
  std::map<uint32_t, int> errors_;
  int in_flight_ = 0;
  int most_in_flight_ = 0;
  bool finished_ = false;
};

enum class Kind { kUring, kThreads };

class IoQueueContract : public ::testing::TestWithParam<Kind> {
 protected:
  static constexpr size_t kBytes = size_t{1} << 20;

  void SetUp() override {
    auto file = SpillFile::open(folder_.path());
    ASSERT_TRUE(file) << file.failure().message;
    file_.emplace(std::move(file).value());
    ASSERT_TRUE(file_->grow(32 * kBytes));
  }
  void TearDown() override {
    if (!queue_) return;
    source_->finish();
    queue_->notify();
    queue_.reset();
    source_.reset();
    gone_.get_future().get();  // the threads have ended: before the file closes
  }

  void start(AnswerFilter filter = {}, size_t bytes_in_flight = 16 * kBytes) {
    source_ = std::make_shared<ListSource>(&gone_);
    QueueOptions options;
    options.fd = file_->fd();
    options.bytes_in_flight = bytes_in_flight;
    options.length_alignment = file_->alignment().length;
    options.filter = std::move(filter);
    auto queue =
        GetParam() == Kind::kUring ? start_uring_queue(options, source_) : start_thread_queue(options, source_);
    if (!queue && GetParam() == Kind::kUring) {
      source_.reset();
      GTEST_SKIP() << "io_uring is not to be had here: " << queue.failure().message;
    }
    ASSERT_TRUE(queue) << queue.failure().message;
    queue_ = std::move(queue).value();
  }
  void put(bool write, const Memory& memory, uint32_t number, uint64_t offset) {
    source_->put({write, memory.data(), static_cast<uint32_t>(memory.bytes()), offset, 0, number});
  }
  int one(bool write, const Memory& memory, uint32_t number, uint64_t offset = 0) {
    put(write, memory, number, offset);
    queue_->notify();
    return source_->wait_for(number + 1).at(number);
  }

  Folder folder_;
  std::optional<SpillFile> file_;
  std::promise<void> gone_;
  std::shared_ptr<ListSource> source_;
  std::unique_ptr<IoQueue> queue_;
};

INSTANTIATE_TEST_SUITE_P(Both, IoQueueContract, ::testing::Values(Kind::kUring, Kind::kThreads),
                         [](const auto& info) { return info.param == Kind::kUring ? "Uring" : "Threads"; });

TEST_P(IoQueueContract, WritesAndReadsBack) {
  start();
  if (!queue_) return;
  Memory out(kBytes, 1), in(kBytes, 2);
  EXPECT_EQ(one(true, out, 0, 4096), 0);
  EXPECT_EQ(one(false, in, 1, 4096), 0);
  EXPECT_TRUE(out == in);
}

TEST_P(IoQueueContract, MovesManyAtOnceWithinItsBound) {
  start({}, 4 * kBytes);
  if (!queue_) return;
  std::vector<Memory> out;
  for (uint32_t i = 0; i < 32; ++i) {
    out.emplace_back(kBytes, i);
    put(true, out.back(), i, i * kBytes);
  }
  queue_->notify();
  for (const auto& [number, error] : source_->wait_for(32)) EXPECT_EQ(error, 0) << number;
  // Four in the kernel's hands; io_uring hands out the next ones before it reports those that have come back.
  EXPECT_LE(source_->most_in_flight(), 2 * 4);
  std::vector<Memory> in;
  for (uint32_t i = 0; i < 32; ++i) in.emplace_back(kBytes, 100);
  for (uint32_t i = 0; i < 32; ++i) put(false, in[i], 32 + i, i * kBytes);
  queue_->notify();
  source_->wait_for(64);
  for (uint32_t i = 0; i < 32; ++i) EXPECT_TRUE(in[i] == out[i]) << i;
}

TEST_P(IoQueueContract, ResumesShortTransfers) {
  std::atomic<int> attempts = 0;
  start([&](const IoRequest&, int answer) {
    ++attempts;
    return answer > 70'000 ? 70'000 : answer;  // not a multiple of 512
  });
  if (!queue_) return;
  Memory out(kBytes, 1), in(kBytes, 2);
  EXPECT_EQ(one(true, out, 0), 0);
  EXPECT_EQ(one(false, in, 1), 0);
  EXPECT_TRUE(out == in);
  EXPECT_GT(attempts, 2 * 14);
}

TEST_P(IoQueueContract, TriesAgainAfterEagainAndEintr) {
  std::atomic<int> attempts = 0;
  start([&](const IoRequest&, int answer) {
    const int attempt = attempts++;
    return attempt % 3 == 0 ? -EAGAIN : attempt % 3 == 1 ? -EINTR : answer;
  });
  if (!queue_) return;
  Memory out(kBytes, 1), in(kBytes, 2);
  EXPECT_EQ(one(true, out, 0), 0);
  EXPECT_EQ(one(false, in, 1), 0);
  EXPECT_TRUE(out == in);
}

TEST_P(IoQueueContract, GivesUpAfterBoundedAttempts) {
  std::atomic<int> attempts = 0;
  start([&](const IoRequest&, int) {
    ++attempts;
    return -EAGAIN;
  });
  if (!queue_) return;
  EXPECT_EQ(one(true, Memory(kBytes), 0), EAGAIN);
  EXPECT_LE(attempts, 100);
}

TEST_P(IoQueueContract, EndOfFileIsAnErrorAndNotALoop) {
  start();
  if (!queue_) return;
  EXPECT_EQ(one(false, Memory(kBytes), 0, 64 * kBytes), EIO);
}

TEST_P(IoQueueContract, ReportsErrnoOfTheOneRequestThatFailed) {
  start([](const IoRequest& request, int answer) { return request.segment == 1 ? -EIO : answer; });
  if (!queue_) return;
  Memory memory(kBytes);
  for (uint32_t i = 0; i < 3; ++i) put(true, memory, i, i * kBytes);
  queue_->notify();
  EXPECT_EQ(source_->wait_for(3), (std::map<uint32_t, int>{{0, 0}, {1, EIO}, {2, 0}}));
}

TEST_P(IoQueueContract, TheKernelsOwnErrorsArrive) {
  start();
  if (!queue_) return;
  if (file_->alignment().memory < 2) GTEST_SKIP() << "no direct I/O in " << folder_.path();
  Memory memory(kBytes);
  source_->put({true, memory.data() + 1, 4096, 0, 0, 0});
  queue_->notify();
  EXPECT_EQ(source_->wait_for(1).at(0), EINVAL) << "misaligned memory";
}

TEST_P(IoQueueContract, EndsByItselfWhenTheHandleIsGone) {
  start();
  if (!queue_) return;
  Memory memory(kBytes);
  put(true, memory, 0, 0);
  queue_->notify();
  source_->wait_for(1);
  source_->finish();
  queue_->notify();
  queue_.reset();
  source_.reset();
  gone_.get_future().get();
}

TEST(IoQueue, SaysWhyNotIoUring) {
  Folder folder;
  auto file = SpillFile::open(folder.path());
  ASSERT_TRUE(file);
  std::promise<void> gone;
  auto source = std::make_shared<ListSource>(&gone);
  QueueOptions options;
  options.fd = file.value().fd();
  std::string why;
  auto queue = start_queue(options, source, false, why);
  ASSERT_TRUE(queue);
  EXPECT_EQ(why, "switched off");
  EXPECT_STREQ(queue.value()->name(), "pread and pwrite in threads");
  source->finish();
  queue.value()->notify();
  source.reset();
  gone.get_future().get();
}

}  // namespace
}  // namespace ebbtide::nvme
