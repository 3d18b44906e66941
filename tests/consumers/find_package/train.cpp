// Trains a small MLP with its activations on disk, as a user of the installed library would, and again without Ebbtide: same gradients?
// Usage: train FOLDER, where the spill files go. No Python is in this process.
#include <ebbtide/ebbtide.h>
#include <torch/torch.h>

#include <cstdio>
#include <optional>
#include <vector>

namespace {

torch::nn::Sequential make_net() {
  torch::manual_seed(7);
  return torch::nn::Sequential(torch::nn::Linear(64, 512), torch::nn::GELU(), torch::nn::Linear(512, 512), torch::nn::Tanh(),
                               torch::nn::Linear(512, 1));
}

/// Losses and gradients of each step, in order.
std::vector<at::Tensor> train(ebbtide::Store* store) {
  torch::nn::Sequential net = make_net();
  if (store != nullptr) store->attach(*net);
  torch::optim::SGD optimizer(net->parameters(), 0.01);
  std::vector<at::Tensor> seen;
  for (int step = 0; step < 3; ++step) {
    at::Tensor input = at::randn({256, 64});
    at::Tensor loss;
    {
      std::optional<ebbtide::OffloadScope> scope;
      if (store != nullptr) scope.emplace(*store);
      loss = net->forward(input).square().mean();
    }
    optimizer.zero_grad();
    loss.backward();
    seen.push_back(loss.detach());
    for (const at::Tensor& parameter : net->parameters()) seen.push_back(parameter.grad().clone());
    optimizer.step();
  }
  return seen;
}

/// Whether `again` is `plain` to the bit; else what is not.
bool same(const std::vector<at::Tensor>& plain, const std::vector<at::Tensor>& again, const char* of) {
  bool all = true;
  for (size_t i = 0; i < plain.size(); ++i) {
    if (at::equal(plain[i], again[i])) continue;
    const at::Tensor off = (plain[i] - again[i]).abs();
    std::fprintf(stderr, "tensor %zu %s differs from plain training: %lld of %lld values, by %g at most, of %g\n", i, of,
                 static_cast<long long>((off != 0).sum().item<int64_t>()), static_cast<long long>(off.numel()),
                 off.max().item<double>(), plain[i].abs().max().item<double>());
    all = false;
  }
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  ebbtide::Options options;
  options.device_budget = ebbtide::Bytes(0);
  options.min_bytes = ebbtide::KiB(4);
  options.spill_to = {argv[1]};
  ebbtide::Store store(options);

  // What torch's vector library does at the first call of a function need not be what it does later (pytorch issue 188792).
  (void)train(nullptr);
  // Who differs says whose the fault is: plain training that is not like itself has nothing to be compared with.
  const std::vector<at::Tensor> plain = train(nullptr);
  const std::vector<at::Tensor> offloaded = train(&store);
  const std::vector<at::Tensor> plain_again = train(nullptr);
  const bool offloaded_is_same = same(plain, offloaded, "under the store");
  if (!same(plain, plain_again, "without a store, once more,") || !offloaded_is_same) return 1;
  std::puts(store.report().c_str());
  if (store.stats().spilled.bytes == ebbtide::Bytes(0)) {
    std::fprintf(stderr, "nothing was spilled\n");
    return 1;
  }

  // An error of the library is caught by its class across the library's border.
  try {
    ebbtide::Options wrong;
    ebbtide::set_option(wrong, "device_budgt", "1GiB");
    return 1;
  } catch (const ebbtide::ConfigError& error) {
    std::puts(error.what());
  }
}
