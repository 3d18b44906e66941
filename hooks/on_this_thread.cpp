#include <ebbtide/hooks/on_this_thread.h>

namespace ebbtide {
namespace {

thread_local OnThisThread here;

}  // namespace

OnThisThread& OnThisThread::get() noexcept {
  return here;
}

}  // namespace ebbtide
