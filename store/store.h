// The handle on an activation store.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/error.h>
#include <ebbtide/store/options.h>
#include <ebbtide/store/planned_record.h>
#include <ebbtide/store/stats.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace ebbtide {

class StoreCore;

/// Keeps what autograd saves within budgets. A scope (OffloadScope in C++, `with store:` in Python) says which forwards
/// it serves.
///
/// Lifetime: dropping the store refuses new packs; what its records need lives until the last of them, and the last
/// tensor handed out, is gone.
/// Threads: all methods from any.
class EBBTIDE_API Store {
 public:
  /// Opens the tiers.
  /// Errors: ConfigError.
  explicit Store(const Options& options = {});
  ~Store();
  Store(Store&&) noexcept;
  Store& operator=(Store&&) noexcept;

  /// Brings home the records that are alive, waits for transfers in flight and gives the spill files back. Idempotent.
  /// Later packs pass through.
  void close();

  Stats stats() const;
  /// The last pass that ended; its number is 0 before the first has.
  PassStats last_pass() const;
  /// One screen of text for people.
  std::string report() const;
  /// What becomes of each record of a pass, in order of packing, as planned after the first passes; empty where the last
  /// pass followed no plan: it fits, or is the first of its kind.
  std::vector<PlannedRecord> plan() const;
  /// Writes what is known of passes like the last, as JSON, for what-ifs.
  /// Errors: Error (kConfig) where no pass has had a backward yet, or the file cannot be written.
  void save_profile(const std::string& path) const;
  /// Writes the plans in force, for Options::plan.
  /// Errors: Error (kConfig) where there are none yet, or the file cannot be written.
  void save_plan(const std::string& path) const;
  /// The same as a text, for follow() in other processes; empty where there are none yet.
  std::string plans_text() const;
  /// Passes of the kinds that `plans` are for go by them from the next on, held within this store's budgets, and no others
  /// are made for them here; other kinds have their own. Nothing where Options::plan is given.
  /// Errors: Error (kConfig) where plans_text() of this version has not made it.
  void follow(std::string_view plans);
  /// Takes down what is done in the next `passes` passes, and writes it to `path` for Perfetto or chrome://tracing when
  /// the last of them has ended, or at close(): calls by thread, waits and why, transfers, passes, bytes by tier.
  /// Errors: Error (kConfig) where the file cannot be written, or a trace is under way. A later one is a warning.
  void save_trace(const std::string& path, int64_t passes = 3) const;
  /// Gives idle host memory back to the system; returns how much.
  Bytes trim();

  /// Warnings go to stderr by default. Called on threads of callers, each warning once.
  void on_warning(std::function<void(const std::string&)> handler);

  /// Registers the parameters and buffers of a torch::nn::Module (by value or reference): they never move. Needs
  /// <ebbtide/ebbtide.h>.
  template <class Module>
  void attach(const Module& module) {
    attach_module(*this, module);
  }

  const std::shared_ptr<StoreCore>& core() const noexcept { return core_; }

 private:
  std::shared_ptr<StoreCore> core_;
};

}  // namespace ebbtide
