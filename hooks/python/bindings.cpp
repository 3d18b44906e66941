// The Python module: a thin layer over the C++ store. Options, statistics and errors cross here; saved tensors never do
// (see hooks/engine.h).
#include <ebbtide/hooks/accelerators.h>
#include <ebbtide/hooks/doctor.h>
#include <ebbtide/hooks/error_translation.h>
#include <ebbtide/hooks/module_parameters.h>
#include <ebbtide/hooks/python/checkpoint_bindings.h>
#include <ebbtide/hooks/python/wrapper_bindings.h>
#include <ebbtide/hooks/saved_tensor.h>
#include <ebbtide/hooks/scope.h>
#include <ebbtide/hooks/torch_storage.h>
#include <ebbtide/store/error.h>
#include <ebbtide/store/options.h>
#include <ebbtide/store/saved_profile.h>
#include <ebbtide/store/stats.h>
#include <ebbtide/store/store.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/store/what_if.h>

#include <ATen/SavedTensorHooks.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace ebbtide {
namespace {

/// The Python class of an error, from ebbtide._errors. REQUIRES: the GIL.
py::object error_class(ErrorCode code) {
  static constexpr const char* kNames[] = {"ConfigError", "OutOfBudget", "SpillError",      "CorruptTensor",
                                           "ClosedError", "DeviceError", "CheckpointError", "RecomputeStopped"};
  return py::module_::import("ebbtide._errors").attr(kNames[static_cast<size_t>(code)]);
}

/// What torch's own error handling turns into an exception of the right class; a pybind11 translator never sees errors
/// that pass through torch.
class PythonError final : public torch::PyTorchError {
 public:
  explicit PythonError(const Error& error) : torch::PyTorchError(error.what()), code_(error.code()) {}
  PyObject* python_type() override { return error_class(code_).release().ptr(); }

 private:
  ErrorCode code_;
};

/// Waits of the store: without the GIL, and broken off by Ctrl-C.
class PythonWaiter final : public Waiter {
 public:
  void* release() override { return PyGILState_Check() != 0 ? PyEval_SaveThread() : nullptr; }
  void check() override {
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
  void resume(void* released) noexcept override {
    if (released != nullptr) PyEval_RestoreThread(static_cast<PyThreadState*>(released));
  }
};

void log_warning(const std::string& text) {
  if (Py_IsInitialized() == 0) return;
  py::gil_scoped_acquire gil;
  py::module_::import("logging").attr("getLogger")("ebbtide").attr("warning")("%s", text);
}

py::dict to_dict(const TierStats& tier) {
  return py::dict(py::arg("bytes") = tier.bytes.count(), py::arg("peak_bytes") = tier.peak_bytes.count(),
                  py::arg("budget_bytes") = tier.budget_bytes.count());
}
py::dict to_dict(const Count& count) {
  return py::dict(py::arg("tensors") = count.tensors, py::arg("bytes") = count.bytes.count());
}
py::dict to_dict(const std::map<std::string, Waits>& waits) {
  py::dict result;
  for (const auto& [name, all] : waits)
    result[py::str(name)] = py::dict(py::arg("times") = all.times, py::arg("seconds") = all.seconds);
  return result;
}
py::dict to_dict(const LinkStats& link) {
  return py::dict(py::arg("bytes") = link.bytes.count(), py::arg("busy_s") = link.busy_s);
}

py::dict to_dict(const Stats& stats) {
  py::dict result;
  result["device"] = to_dict(stats.device);
  result["host"] = to_dict(stats.host);
  result["host_other_node"] = stats.host_other_node;
  result["spill"] = to_dict(stats.spill);
  result["packed"] = to_dict(stats.packed);
  result["passed_through"] = to_dict(stats.passed_through);
  result["deduplicated"] = to_dict(stats.deduplicated);
  result["saved"] = to_dict(stats.saved);
  result["kept"] = to_dict(stats.kept);
  result["offloaded"] = to_dict(stats.offloaded);
  result["spilled"] = to_dict(stats.spilled);
  result["recomputed"] = to_dict(stats.recomputed);
  py::dict reasons;
  for (const auto& [reason, count] : stats.passed_through_reasons) reasons[py::str(reason)] = to_dict(count);
  result["passed_through_reasons"] = reasons;
  py::dict ops, unequal;
  for (const auto& [op, count] : stats.recomputed_ops) ops[py::str(op)] = to_dict(count);
  for (const auto& [op, sites] : stats.unequal_redos) unequal[py::str(op)] = sites;
  result["recomputed_ops"] = ops;
  result["unequal_redos"] = unequal;
  py::dict regions;
  for (const auto& [name, fates] : stats.regions)
    regions[py::str(name)] =
        py::dict(py::arg("kept") = to_dict(fates.kept), py::arg("offloaded") = to_dict(fates.offloaded),
                 py::arg("spilled") = to_dict(fates.spilled), py::arg("recomputed") = to_dict(fates.recomputed));
  result["regions"] = regions;
  result["stall_s"] = stats.stall_s;
  result["stalls"] = to_dict(stats.stalls);
  result["returns_waited_for"] = to_dict(stats.returns_waited_for);
  result["stalled_regions"] = to_dict(stats.stalled_regions);
  py::dict memory;
  for (const DeviceStats& device : stats.devices) {
    if (device.memory.most == Bytes(0)) continue;
    memory[py::str(device.name)] = py::dict(
        py::arg("most_bytes") = device.memory.most.count(), py::arg("peak_bytes") = device.memory.peak.count(),
        py::arg("saved_bytes") = device.memory.saved.count(), py::arg("others_bytes") = device.memory.others.count());
  }
  result["device_memory"] = memory;
  result["recipe_bytes"] = stats.recipe_bytes.count();
  result["recipe_bytes_peak"] = stats.recipe_bytes_peak.count();
  result["recompute_s"] = stats.recompute_s;
  result["d2h"] = to_dict(stats.d2h);
  result["h2d"] = to_dict(stats.h2d);
  result["disk_write"] = to_dict(stats.disk_write);
  result["disk_read"] = to_dict(stats.disk_read);
  result["wear"] =
      py::dict(py::arg("bytes_a_pass") = stats.wear.a_pass.count(), py::arg("bytes_a_day") = stats.wear.a_day.count(),
               py::arg("days_to_rated") = stats.wear.days_to_rated);
  result["handed_over"] = stats.handed_over.count();
  result["handed_over_peak"] = stats.handed_over_peak.count();
  result["referenced_elsewhere"] = stats.referenced_elsewhere.count();
  result["referenced_elsewhere_peak"] = stats.referenced_elsewhere_peak.count();
  result["alive_peak"] = stats.alive_peak.count();
  result["passes"] = stats.passes;
  result["plans"] = stats.plans;
  result["predicted_step_s"] = stats.predicted_step_s;
  result["measured_step_s"] = stats.measured_step_s;
  result["lower_bound_step_s"] = stats.lower_bound_step_s;
  result["predicted_peak_bytes"] = stats.predicted_peak_bytes.count();
  result["measured_peak_bytes"] = stats.measured_peak_bytes.count();
  return result;
}

py::dict to_dict(const PassStats& pass) {
  py::dict result;
  result["pass"] = pass.number;
  const auto put = [&](const std::string& name, const Count& count) {
    result[py::str(name + "_tensors")] = count.tensors;
    result[py::str(name + "_bytes")] = count.bytes.count();
  };
  put("saved", pass.saved);
  put("kept", pass.kept);
  put("offloaded", pass.offloaded);
  put("spilled", pass.spilled);
  put("recomputed", pass.recomputed);
  result["stall_s"] = pass.stall_s;
  result["seconds"] = pass.seconds;
  return result;
}

py::list to_list(const std::vector<PlannedRecord>& plan) {
  py::list list;
  for (const PlannedRecord& record : plan)
    list.append(py::dict(py::arg("bytes") = record.bytes.count(), py::arg("op") = record.op,
                         py::arg("region") = record.region, py::arg("device") = record.device,
                         py::arg("action") = record.action, py::arg("why") = record.why));
  return list;
}

py::dict to_dict(const WhatIf& answer) {
  py::list devices;
  for (const WhatIf::OnDevice& device : answer.devices)
    devices.append(py::dict(py::arg("name") = device.name, py::arg("saved_bytes") = device.saved.count(),
                            py::arg("budget_bytes") = device.budget.count(),
                            py::arg("peak_bytes") = device.peak.count(), py::arg("over_bytes") = device.over.count()));
  return py::dict(py::arg("step_s") = answer.seconds, py::arg("compute_s") = answer.compute_s,
                  py::arg("stall_s") = answer.stall_s, py::arg("recompute_s") = answer.recompute_s,
                  py::arg("copying_s") = answer.copying_s, py::arg("lower_bound_s") = answer.lower_bound_s,
                  py::arg("devices") = devices, py::arg("host_peak_bytes") = answer.host_peak.count(),
                  py::arg("spill_peak_bytes") = answer.spill_peak.count(),
                  py::arg("records") = to_list(answer.records));
}

/// Tells a store of changes to parameters. Does not keep the store, and serves its records when it is gone.
struct ParameterWatch {
  std::weak_ptr<StoreCore> core;
};

/// A saved tensor in the hands of Python's own saved_tensors_hooks.
struct HeldTensor {
  std::unique_ptr<SavedTensor> saved;
};

/// Names and values, as text.
using Texts = std::vector<std::pair<std::string, std::string>>;

SavedProfile open_profile(const std::string& path) {
  auto profile = read_profile(path);
  if (!profile.ok()) throw ConfigError(path + ": " + profile.failure().message);
  return std::move(profile).value();
}

WhatIf answer(const SavedProfile& profile, const Texts& options, const Texts& speeds) {
  Options asked;
  for (const auto& [name, value] : options) set_option(asked, name, value);
  Speeds at;
  for (const auto& [name, value] : speeds) set_speed(at, name, value);
  return what_if(profile, asked, at);
}

/// `spill_to`: folders may have any name, a colon in it too; none: what the environment says.
std::shared_ptr<Store> open_store(const Texts& texts, std::optional<std::vector<std::string>> spill_to) {
  Options options;
  for (const auto& [name, value] : texts) set_option(options, name, value);
  if (spill_to) {
    options.spill_to = *std::move(spill_to);
    options.given.emplace("spill_to");
  }
  auto store = std::make_shared<Store>(options);
  store->on_warning(log_warning);
  store->core()->set_waiter(std::make_shared<PythonWaiter>());
  return store;
}

}  // namespace
}  // namespace ebbtide

PYBIND11_MODULE(_ebbtide, module) {
  using namespace ebbtide;
  set_error_translator([](const Error& error) { throw PythonError(error); });
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      PyErr_SetString(error_class(error.code()).ptr(), error.what());
    } catch (PythonError& error) {
      PyErr_SetString(error.python_type(), error.what());
    }
  });

  module.def("leak_storages", &leak_storages);
  bind_checkpoint(module);
  bind_wrappers(module);

  const auto released = py::call_guard<py::gil_scoped_release>();
  py::class_<Store, std::shared_ptr<Store>>(module, "Store")
      .def(py::init(&open_store), released)
      .def("close", &Store::close, released)
      .def("closed", [](const Store& store) { return store.core()->closed(); })
      .def(
          "trim", [](Store& store) { return store.trim().count(); }, released)
      .def("stats", [](const Store& store) { return to_dict(store.stats()); })
      .def("last_pass", [](const Store& store) { return to_dict(store.last_pass()); })
      .def("plan", [](const Store& store) { return to_list(store.plan()); })
      .def("save_profile", &Store::save_profile)
      .def("save_plan", &Store::save_plan)
      .def("plans_text", &Store::plans_text)
      .def("follow", &Store::follow, released)
      .def("plans_made", [](const Store& store) { return store.stats().plans; })
      .def("save_trace", &Store::save_trace)
      .def("report", &Store::report)
      .def("follow_plans", [](Store& store, bool follow) { store.core()->follow_plans(follow); })
      .def("use_costly_recipes", [](Store& store, bool use) { store.core()->use_costly_recipes(use); })
      .def("attach_tensor", [](Store& store, const at::Tensor& tensor) { attach_tensor(store, tensor); })
      .def("not_attached",
           [](const Store& store, const std::vector<at::Tensor>& tensors) { return not_attached(store, tensors); })
      .def("attach_layer_norm",
           [](Store& store, const at::Tensor& weight, double eps) { attach_layer_norm(store, weight, eps); });

  // As text and as JSON.
  module.def(
      "doctor",
      [](std::vector<std::string> folders) {
        const Diagnosis found = doctor(std::move(folders));
        return std::pair(to_text(found), to_json(found));
      },
      released);
  module.def(
      "measure_links", [] { return to_json(doctor(DoctorOptions{.accelerators = accelerators_of_torch()})); },
      released);
  module.def(
      "measure_folders",
      [](std::vector<std::string> folders, double seconds) {
        const auto each_way =
            std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(seconds));
        return to_json(doctor(DoctorOptions{.folders = std::move(folders), .each_way = each_way}));
      },
      released);

  module.def("bytes_text", [](int64_t bytes) { return to_string(Bytes(bytes)); });
  py::class_<SavedProfile>(module, "SavedProfile")
      .def(py::init(&open_profile))
      .def("has_recipes",
           [](const SavedProfile& saved) {
             return std::ranges::any_of(saved.profile.records, [](const auto& record) { return !!record.recipe; });
           })
      .def("what_if", [](const SavedProfile& saved, const Texts& options, const Texts& speeds) {
        return to_dict(answer(saved, options, speeds));
      });

  py::class_<ParameterWatch>(module, "ParameterWatch")
      .def(py::init([](const Store& store) {
        announce_parameter_changes(*store.core());
        return ParameterWatch{store.core()};
      }))
      .def("store_lives", [](const ParameterWatch& watch) { return !watch.core.expired(); })
      .def("watches", [](const ParameterWatch& watch, const Store& store) { return watch.core.lock() == store.core(); })
      .def(
          "before_change",
          [](const ParameterWatch& watch, const std::vector<at::Tensor>& parameters, bool by_optimizer) {
            const auto core = watch.core.lock();
            if (!core) return;
            try {
              before_parameters_change(*core, parameters, by_optimizer ? ChangedBy::kOptimizer : ChangedBy::kOther);
            } catch (const c10::Error& error) {
              throw std::runtime_error(error.what_without_backtrace());
            }
          },
          released);

  py::class_<Scope>(module, "Scope")
      .def(py::init([](const Store& store) { return std::make_unique<Scope>(store.core()); }))
      .def_static("detached", [](const Store& store) { return Scope::detached(store.core()); })
      .def("leave", &Scope::leave, released);

  py::class_<HeldTensor>(module, "HeldTensor")
      .def(
          "unpack", [](HeldTensor& held) { return held.saved->call_unpack_hook(); }, released);
  // For Python's hook stack: the caller keeps `scope`, which is not entered on any thread.
  module.def(
      "pack",
      [](Scope& scope, const at::Tensor& tensor) {
        auto saved = SavedTensor::make(scope);
        saved->call_pack_hook(tensor);
        return HeldTensor{std::move(saved)};
      },
      released);
  // For what is kept beside autograd, by Python code that asks which hooks there are.
  module.def("in_scope", [] {
    const Scope* scope = Scope::current();
    return scope != nullptr && scope->core()->accepts_packs() && at::SavedTensorDefaultHooks::is_enabled() &&
           at::SavedTensorDefaultHooks::get_tls_state().stack.size() <= scope->python_hooks_outside();
  });
  module.def(
      "pack_here",
      [](const at::Tensor& tensor) {
        Scope* scope = Scope::current();
        if (scope == nullptr) throw std::runtime_error("ebbtide: no scope is entered on this thread");
        const at::NoGradGuard no_grad;
        auto saved = SavedTensor::make(*scope, SavedTensor::Recipes::kNone);
        saved->call_pack_hook(tensor);
        return HeldTensor{std::move(saved)};
      },
      released);
}
