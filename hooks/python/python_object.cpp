#include <ebbtide/hooks/python/python_object.h>

#include <torch/csrc/Exceptions.h>

#include <mutex>
#include <utility>
#include <vector>

namespace ebbtide {
namespace {

/// What waits for a thread that has the GIL to let go of it: the next that holds an object, or the main thread, which may
/// itself wait for long. Leaked: hooks die at any time.
class Undertaker {
 public:
  /// REQUIRES: the GIL.
  static void let_go_of_all() {
    std::vector<PyObject*> waiting;
    {
      const std::lock_guard lock(instance().mutex_);
      waiting.swap(instance().waiting_);
    }
    for (PyObject* object : waiting) Py_DECREF(object);
  }
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
    {
      const std::lock_guard lock(instance().mutex_);
      instance().called_ = false;
    }
    let_go_of_all();
    return 0;
  }

  std::mutex mutex_;
  std::vector<PyObject*> waiting_;
  bool called_ = false;
};

}  // namespace

HeldObject::HeldObject(pybind11::object object) : object_(object.release().ptr()) {
  Undertaker::let_go_of_all();
}

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
