#include <ebbtide/hooks/checkpoint.h>
#include <ebbtide/hooks/python/checkpoint_bindings.h>
#include <ebbtide/hooks/region.h>

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

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

/// A Python function that any thread may call. It is let go of by a thread that has the GIL, and nobody waits for that: the
/// last one to hold it is a hook.
class PythonFunction {
 public:
  explicit PythonFunction(py::object function) : function_(function.release().ptr()) {}
  ~PythonFunction() { Undertaker::take(function_); }
  PythonFunction(const PythonFunction&) = delete;
  PythonFunction& operator=(const PythonFunction&) = delete;

  /// Errors: the function's, in a form that passes through torch from any thread.
  void operator()(const std::vector<at::Tensor>& tensors) const {
    const py::gil_scoped_acquire gil;
    try {
      py::list list;
      for (const at::Tensor& tensor : tensors) list.append(tensor);
      (void)py::reinterpret_borrow<py::object>(function_)(std::move(list));
    } catch (py::error_already_set& error) {
      error.restore();
      python_error passing;
      passing.persist();
      throw std::move(passing);
    }
  }

 private:
  PyObject* const function_;
};

/// `sequence_numbers`: of all process groups, now; None where there is none.
py::object run_checkpoint(const py::object& first, py::object again, const std::vector<at::Tensor>& tensors,
                          const py::object& sequence_numbers) {
  const bool possible = !sequence_numbers.is_none();
  const py::object before = possible ? sequence_numbers() : py::none();
  CheckpointedRun run(
      tensors,
      [function = std::make_shared<PythonFunction>(std::move(again))](const std::vector<at::Tensor>& values) {
        (*function)(values);
      },
      possible ? CheckpointedRun::Collectives::kPossible : CheckpointedRun::Collectives::kNone);
  py::object result = first();
  run.finish(possible && !before.equal(sequence_numbers()));
  return result;
}

}  // namespace

void bind_checkpoint(py::module_& module) {
  module.def("checkpoint", &run_checkpoint);
  py::class_<Region>(module, "Region").def(py::init([](const std::string& name, const std::string& policy) {
    return std::make_unique<Region>(name, parse_policy(policy));
  }));
  module.def("check_region", [](const std::string& name, const std::string& policy) {
    (void)RegionLabel::of(name, parse_policy(policy));
  });
}

}  // namespace ebbtide
