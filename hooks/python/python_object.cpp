#include <ebbtide/hooks/python/python_object.h>

#include <torch/csrc/Exceptions.h>

#include <mutex>
#include <utility>
#include <vector>

namespace ebbtide {
namespace {

/// What waits for a thread that has the GIL to let go of it. Leaked: hooks die at any time.
class Undertaker {
 public:
  static void take(PyObject* object) {
    if (Py_IsInitialized() == 0) return;
    if (PyGILState_Check() != 0) {
      Py_DECREF(object);
      return;
    }
    Undertaker& undertaker = instance();
    const std::lock_guard lock(undertaker.mutex_);
    undertaker.waiting_.push_back(object);
    // Refused where many calls wait already: with the next one, then.
    if (!undertaker.called_) undertaker.called_ = Py_AddPendingCall(&Undertaker::bury, nullptr) == 0;
  }

 private:
  static Undertaker& instance() {
    static auto* undertaker = new Undertaker;
    return *undertaker;
  }
  static int bury(void*) {
    std::vector<PyObject*> waiting;
    {
      const std::lock_guard lock(instance().mutex_);
      waiting.swap(instance().waiting_);
      instance().called_ = false;
    }
    for (PyObject* object : waiting) Py_DECREF(object);
    return 0;
  }

  std::mutex mutex_;
  std::vector<PyObject*> waiting_;
  bool called_ = false;
};

}  // namespace

HeldObject::~HeldObject() {
  Undertaker::take(object_);
}

void pass_on(pybind11::error_already_set& error) {
  error.restore();
  python_error passing;
  passing.persist();
  throw std::move(passing);
}

}  // namespace ebbtide
