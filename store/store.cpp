#include <ebbtide/store/saved_plans.h>
#include <ebbtide/store/saved_profile.h>
#include <ebbtide/store/store.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/store/text_file.h>

#include <utility>

namespace ebbtide {

Store::Store(const Options& options) : core_(StoreCore::open(options)) {}

Store::~Store() {
  if (core_) core_->refuse_packs();
}

Store::Store(Store&&) noexcept = default;

Store& Store::operator=(Store&& other) noexcept {
  if (this != &other) {
    if (core_) core_->refuse_packs();
    core_ = std::move(other.core_);
  }
  return *this;
}

void Store::close() {
  core_->close();
}
Stats Store::stats() const {
  core_->learn_of_devices();
  return core_->stats();
}
PassStats Store::last_pass() const {
  core_->learn_of_devices();
  return core_->last_pass();
}
std::string Store::report() const {
  core_->learn_of_devices();
  return core_->report();
}
std::vector<PlannedRecord> Store::plan() const {
  return core_->plan();
}
void Store::save_profile(const std::string& path) const {
  const auto profile = core_->profile();
  if (!profile) throw ConfigError("save_profile: no pass of this store has had a backward yet");
  const Status written = write_text_file(path, to_json(*profile) + '\n');
  if (!written.ok()) throw ConfigError("save_profile: cannot write " + path + ": " + written.failure().message);
}
void Store::save_plan(const std::string& path) const {
  const auto plans = core_->plans_in_force();
  if (plans.empty())
    throw ConfigError(
        "save_plan: no plan is in force: the second pass of a kind that saves more than its budget makes one, "
        "where there is somewhere to go");
  const Status written = write_text_file(path, to_json(plans));
  if (!written.ok()) throw ConfigError("save_plan: cannot write " + path + ": " + written.failure().message);
}
std::string Store::plans_text() const {
  const auto plans = core_->plans_in_force();
  return plans.empty() ? std::string() : to_json(plans);
}
void Store::follow(std::string_view plans) {
  auto read = plans_from_json(plans);
  if (!read.ok()) throw ConfigError("follow: " + read.failure().message);
  core_->follow(std::move(read).value());
}
void Store::save_trace(const std::string& path, int64_t passes) const {
  core_->trace(path, passes);
}
Bytes Store::trim() {
  return core_->trim();
}
void Store::on_warning(std::function<void(const std::string&)> handler) {
  core_->set_warning_handler(std::move(handler));
}

}  // namespace ebbtide
