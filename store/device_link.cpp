#include <ebbtide/store/device_link.h>
#include <ebbtide/store/store_core.h>

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <system_error>
#include <thread>
#include <utility>

namespace ebbtide {
namespace {

constexpr std::chrono::microseconds kPollEvery{500};
constexpr std::chrono::seconds kLinger{1};

}  // namespace

DeviceLink::DeviceLink(std::shared_ptr<Device> on, std::shared_ptr<DeviceAllocator> from,
                       const LinkBandwidth& bandwidth, const Clock* host_clock)
    : device(std::move(on)),
      allocator(std::move(from)),
      out(*device, clock_, Direction::kOut, {.link = load_, .bandwidth = bandwidth.out}),
      in(*device, clock_, Direction::kIn, {.link = load_, .bandwidth = bandwidth.in}),
      clock(std::make_shared<DeviceClock>(device, host_clock != nullptr ? *host_clock : clock_)) {}

void DeviceLink::pump() {
  out.pump();
  in.pump();
  clock->pump();
}

bool DeviceLink::idle() const {
  return out.idle() && in.idle();
}

std::shared_ptr<LinkThread> LinkThread::start(std::weak_ptr<StoreCore> core) {
  auto self = std::make_shared<LinkThread>();
  sigset_t all, before;  // signals are for the program's own threads
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    std::thread([self, core = std::move(core)] {
      pthread_setname_np(pthread_self(), "ebbtide-link");
      self->run(core);
    }).detach();
  } catch (const std::system_error&) {
    self = nullptr;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return self;
}

void LinkThread::add(std::shared_ptr<DeviceLink> link) {
  const std::lock_guard lock(mutex_);
  links_.push_back(std::move(link));
}

void LinkThread::kick() noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(busy_, true)) return;
  }
  kicked_.notify_one();
}

void LinkThread::end() noexcept {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  kicked_.notify_one();
}

void LinkThread::run(const std::weak_ptr<StoreCore>& weak_core) {
  std::chrono::steady_clock::time_point leave_at{};
  for (;;) {
    std::vector<std::shared_ptr<DeviceLink>> links;
    bool ended = false;
    {
      std::unique_lock lock(mutex_);
      kicked_.wait(lock, [&] { return busy_ || ended_; });
      busy_ = false;
      ended = ended_;
      links = links_;
    }
    for (const auto& link : links) {
      if (ended) {
        link->out.close();
        link->in.close();
      }
      link->pump();
    }
    if (const auto core = weak_core.lock()) core->sink_ahead();
    const bool idle = std::ranges::all_of(links, [](const auto& link) { return link->idle(); });
    if (ended) {
      const auto now = std::chrono::steady_clock::now();
      if (leave_at == decltype(leave_at){}) leave_at = now + kLinger;
      if (idle || now >= leave_at) return;
    }
    if (idle) continue;
    std::unique_lock lock(mutex_);
    busy_ = true;
    kicked_.wait_for(lock, kPollEvery, [&] { return ended_ && !ended; });
  }
}

}  // namespace ebbtide
