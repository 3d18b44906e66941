// Trains a byte-level GPT on real text in LibTorch, plain or with Ebbtide in one of several ways; no Python in the process.
//
// Alone it trains and prints a line a step. With --turns it is a contender of demo.py: it waits for a word on stdin
// (step, finish), does that, and answers with one line of JSON, as train_gpt.py does.
#include <ebbtide/ebbtide.h>
#include <tests/support/vector_functions.h>
#include <xxhash.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "device.h"
#include "gpt.h"
#include "text.h"

namespace bench {
namespace {

struct Arguments {
  int64_t layers = 12, width = 768, tokens = 512, batch = 4, steps = 6;
  std::string device = "cpu";
  uint64_t seed = 0;
  std::string data = "/usr/share/common-licenses", mode = "plain", budget;
  std::string spill = std::getenv("TMPDIR") != nullptr ? std::getenv("TMPDIR") : "/tmp";
  bool turns = false;
};

void add_options(CLI::App& app, Arguments& arguments) {
  const CLI::Range positive(int64_t{1}, int64_t{1} << 40);
  app.add_option("--device", arguments.device)->check(CLI::IsMember({"cpu", "cuda"}))->capture_default_str();
  app.add_option("--layers", arguments.layers)->check(positive)->capture_default_str();
  app.add_option("--width", arguments.width, "A multiple of 64, the width of a head")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--tokens", arguments.tokens, "Bytes of text in a sequence")->check(positive)->capture_default_str();
  app.add_option("--batch", arguments.batch, "Sequences in a step")->check(positive)->capture_default_str();
  app.add_option("--steps", arguments.steps)->check(positive)->capture_default_str();
  app.add_option("--data", arguments.data, "A text file, or a folder of them")->capture_default_str();
  app.add_option("--seed", arguments.seed)->capture_default_str();
  app.add_option("--mode", arguments.mode,
                 "What becomes of activations, as in train_gpt.py: they stay; full: are computed again, by "
                 "ebbtide::checkpoint around each block; selective: the same, but for what each block's MLP saves; "
                 "offload: move; ebbtide: move, or are computed again where that is cheap; regions: all of it, as the "
                 "plan finds")
      ->check(CLI::IsMember({"plain", "full", "selective", "offload", "ebbtide", "regions"}))
      ->capture_default_str();
  app.add_option("--budget", arguments.budget,
                 "Ebbtide: bytes of activations that may stay in memory, like 150MiB (0; selective: what fits)");
  app.add_option("--spill", arguments.spill, "Ebbtide: folder for what leaves memory")->capture_default_str();
  app.add_flag("--turns", arguments.turns, "Wait for each turn on stdin and answer in JSON, for demo.py");
  // One line an error, as everywhere in this folder.
  app.failure_message([](const CLI::App* failed, const CLI::Error& error) {
    return failed->get_name() + ": " + error.what() + " (--help lists the options)\n";
  });
}

std::optional<ebbtide::Store> open_store(const Arguments& arguments) {
  if (arguments.mode == "plain" || arguments.mode == "full") return std::nullopt;
  ebbtide::Options options;
  if (!arguments.budget.empty() || arguments.mode != "selective")
    ebbtide::set_option(options, "device_budget", arguments.budget.empty() ? "0" : arguments.budget);
  options.spill_to = {arguments.spill};
  options.recompute = arguments.mode != "offload";
  return std::optional<ebbtide::Store>(std::in_place, options);
}

/// 128 bits over the loss and every parameter's gradient, in the parameters' order.
std::string digest(const at::Tensor& loss, const std::vector<at::Tensor>& parameters) {
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), &XXH3_freeState);
  XXH3_128bits_reset(state.get());
  const float value = loss.item<float>();
  XXH3_128bits_update(state.get(), &value, sizeof(value));
  for (const at::Tensor& parameter : parameters) {
    const at::Tensor gradient = parameter.grad().contiguous().cpu();
    XXH3_128bits_update(state.get(), gradient.const_data_ptr(), gradient.nbytes());
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  char text[33];
  std::snprintf(text, sizeof(text), "%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                static_cast<unsigned long long>(hash.low64));
  return text;
}

struct Step {
  double seconds;
  double loss;
  std::string digest;
  nlohmann::json bytes;  // what became of this step's saved tensors; empty without a store
  int64_t block_runs;
};

/// The model, its optimizer and its text. One step is: forward, backward, AdamW.
class Training {
 public:
  explicit Training(const Arguments& arguments)
      : device_(arguments.device),
        text_(load_text(arguments.data, arguments.tokens)),
        draw_(arguments.seed),
        batch_(arguments.batch),
        tokens_(arguments.tokens),
        store_(open_store(arguments)),
        model_(seeded_model(arguments)),
        optimizer_(model_->parameters(), torch::optim::AdamWOptions(3e-4)) {
    run_blocks(arguments.mode);
  }

  Step step() {
    const auto [inputs, targets] = next_batch();
    const nlohmann::json before = counters();
    block_runs_ = 0;
    device_.wait();
    const auto start = std::chrono::steady_clock::now();
    optimizer_.zero_grad();
    at::Tensor loss;
    if (store_) {
      ebbtide::OffloadScope scope(*store_);
      loss = forward(inputs, targets);
      scope.leave();  // raises what the destructor could not
    } else {
      loss = forward(inputs, targets);
    }
    loss.backward();
    optimizer_.step();
    device_.wait();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    nlohmann::json bytes = counters();
    for (auto& [name, value] : bytes.items()) value = value.get<int64_t>() - before.at(name).get<int64_t>();
    // The clock has stopped: hashing is no part of a step.
    return {seconds.count(), loss.item<float>(), digest(loss, model_->parameters()), std::move(bytes), block_runs_};
  }

  void forget_peak() { device_.forget_peak(); }
  std::optional<int64_t> peak_device_bytes() const { return device_.peak_bytes(); }

  /// Ebbtide's report; nothing for plain.
  std::optional<std::string> report() const { return store_ ? std::optional(store_->report()) : std::nullopt; }

 private:
  static Gpt seeded_model(const Arguments& arguments) {
    torch::manual_seed(arguments.seed);
    Gpt model(arguments.layers, arguments.width, arguments.tokens);
    model->to(c10::Device(arguments.device));
    return model;
  }

  void run_blocks(const std::string& mode) {
    using Block = std::shared_ptr<BlockImpl>;
    const auto run = [this](const Block& block, const at::Tensor& x) {
      ++block_runs_;
      return block->forward(x);
    };
    model_->run_block = run;
    if (mode == "full" || mode == "regions")
      model_->run_block = [run](const Block& block, const at::Tensor& x) { return ebbtide::checkpoint(run, block, x); };
    if (mode != "selective") return;
    model_->run_block = [run](const Block& block, const at::Tensor& x) {
      const ebbtide::Region again("block", ebbtide::Policy::kRecompute);
      return ebbtide::checkpoint(run, block, x);
    };
    for (const auto& block : *model_->blocks)
      block->as<BlockImpl>()->run_mlp = [](const BlockImpl::Mlp& mlp, const at::Tensor& x) {
        const ebbtide::Region stays("mlp", ebbtide::Policy::kKeep);
        return mlp(x);
      };
  }

  at::Tensor forward(const at::Tensor& inputs, const at::Tensor& targets) {
    const auto precision = device_.precision();
    return model_(inputs, targets);
  }

  /// Bytes and the bytes that follow them, each (batch, tokens), int64; the same for every contender with the same
  /// seed.
  std::pair<at::Tensor, at::Tensor> next_batch() {
    at::Tensor rows = at::empty({batch_, tokens_ + 1}, at::kLong);
    int64_t* out = rows.mutable_data_ptr<int64_t>();
    for (int64_t row = 0; row < batch_; ++row) {
      const uint64_t start = draw_() % (text_.size() - static_cast<size_t>(tokens_));
      out = std::copy_n(text_.begin() + static_cast<std::ptrdiff_t>(start), tokens_ + 1, out);
    }
    return {rows.slice(1, 0, tokens_).contiguous().to(device_.device()),
            rows.slice(1, 1, tokens_ + 1).contiguous().to(device_.device())};
  }

  nlohmann::json counters() const {
    if (!store_) return nlohmann::json::object();
    const auto stats = store_->stats();
    return {{"saved", stats.saved.bytes.count()},
            {"kept", stats.kept.bytes.count()},
            {"offloaded", stats.offloaded.bytes.count()},
            {"spilled", stats.spilled.bytes.count()},
            {"recomputed", stats.recomputed.bytes.count()}};
  }

  StepOn device_;
  std::vector<uint8_t> text_;
  std::mt19937_64 draw_;
  int64_t batch_, tokens_;
  std::optional<ebbtide::Store> store_;
  Gpt model_;
  torch::optim::AdamW optimizer_;
  int64_t block_runs_ = 0;  // in this step
};

/// Starts the peak anew, so that loading libraries does not count. In a sandbox that forbids it the peak covers the
/// whole process.
void forget_peak_rss() {
  std::ofstream("/proc/self/clear_refs") << "5";
}

int64_t peak_rss_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;
  }
  throw std::runtime_error("/proc/self/status has no VmHWM");
}

void answer(const nlohmann::json& json) {
  std::cout << json.dump() << std::endl;
}

/// Answers the words on stdin until finish, or until demo.py has gone.
void take_turns(Training& training) {
  answer({{"ready", true}});
  bool stepped = false;
  for (std::string word; std::getline(std::cin, word);) {
    if (word == "step") {
      if (!std::exchange(stepped, true)) {
        training.forget_peak();
        forget_peak_rss();
      }
      const Step step = training.step();
      answer({{"seconds", step.seconds},
              {"loss", step.loss},
              {"digest", step.digest},
              {"bytes", step.bytes},
              {"block_runs", step.block_runs}});
    } else if (word == "finish") {
      const auto report = training.report();
      const auto peak_device = training.peak_device_bytes();
      answer({{"peak_rss_bytes", peak_rss_bytes()},
              {"peak_device_bytes", peak_device ? nlohmann::json(*peak_device) : nlohmann::json()},
              {"report", report ? nlohmann::json(*report) : nlohmann::json()}});
      return;
    } else {
      throw BadInput("--turns knows the words step and finish, not " + word);
    }
  }
}

void train(Training& training, int64_t steps) {
  forget_peak_rss();
  for (int64_t number = 1; number <= steps; ++number) {
    const Step step = training.step();
    std::printf("step %ld/%ld  loss %.4f  %.3f s\n", static_cast<long>(number), static_cast<long>(steps), step.loss,
                step.seconds);
    std::fflush(stdout);
  }
  std::printf("peak RSS %.0f MiB\n", static_cast<double>(peak_rss_bytes()) / (1024.0 * 1024.0));
  std::fflush(stdout);
  if (const auto report = training.report()) std::cout << *report;
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  bench::Arguments arguments;
  CLI::App app("Trains a byte-level GPT on real text in LibTorch, plain or with Ebbtide.", "train_gpt");
  bench::add_options(app, arguments);
  try {
    app.parse(argc, argv);
    if (arguments.width % bench::kHeadWidth != 0) {
      throw bench::BadInput("--width " + std::to_string(arguments.width) +
                            ": a multiple of 64 is needed, the width of a head");
    }
    ebbtide::test::settle_vector_functions();  // contenders are compared bit by bit
    bench::Training training(arguments);
    if (arguments.turns) {
      bench::take_turns(training);
    } else {
      bench::train(training, arguments.steps);
    }
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const bench::BadInput& error) {
    std::cerr << "train_gpt: " << error.what() << "\n";
    return 2;
  } catch (const ebbtide::Error& error) {
    // A wrong option, no room, a full disk: Ebbtide says which in one line.
    std::cerr << "train_gpt: " << error.what() << "\n";
    return 2;
  }
  return 0;
}
