// Random programs over autograd: ops, shapes, layouts, dtypes, views, branches, writes in place, shared storages.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace ebbtide::test {

/// What a run gave: losses and gradients, or the error that it ended with.
struct GraphResult {
  std::vector<at::Tensor> tensors;  ///< undefined where autograd gave none
  std::string error;
};

/// The program of one seed. Each run does the same; `forward` is called with the part that belongs under a store.
class RandomGraph {
 public:
  explicit RandomGraph(uint64_t seed) : seed_(seed) {}

  GraphResult run(const std::function<void(const std::function<void()>&)>& forward) const {
    Program program(seed_);
    GraphResult result;
    try {
      forward([&] { program.forward(); });
      program.backward(result.tensors);
    } catch (const c10::Error& error) {
      result.error = error.what_without_backtrace();
      result.tensors.clear();
    }
    return result;
  }

 private:
  using Tensor = at::Tensor;

  class Program {
   public:
    explicit Program(uint64_t seed) : random_(seed) {
      at::manual_seed(seed);
      rows_ = 16 * (1 + pick(3));
      columns_ = 32 * (1 + pick(3));
      static constexpr at::ScalarType kTypes[] = {at::kFloat, at::kFloat, at::kBFloat16, at::kDouble};
      dtype_ = kTypes[pick(4)];
      for (int i = 0; i < 3; ++i) leaves_.push_back(at::randn({rows_, columns_}, dtype_).requires_grad_(true));
      weight_ = at::randn({columns_, columns_}, dtype_).div_(8).requires_grad_(true);
      scale_ = at::randn({columns_}, dtype_).requires_grad_(true);
      shift_ = at::randn({columns_}, dtype_).requires_grad_(true);
    }

    void forward() {
      std::vector<Tensor> values;
      for (const Tensor& leaf : leaves_) values.push_back(leaf * 1.5);
      std::vector<Tensor> ends;
      const int ops = 4 + pick(24);
      for (int i = 0; i < ops; ++i) {
        Tensor& x = values[static_cast<size_t>(pick(static_cast<int>(values.size())))];
        const Tensor z = values[static_cast<size_t>(pick(static_cast<int>(values.size())))];
        if (pick(20) == 0)
          write_to(x);
        else
          values.push_back(shaped(op(x, z)));
        if (pick(4) == 0) ends.push_back(consumed(values.back()));
        if (pick(3) == 0) values[static_cast<size_t>(pick(static_cast<int>(values.size())))] = values.back();
      }
      ends.push_back(consumed(values.back()));
      for (const Tensor& end : ends) losses_.push_back(end.to(at::kFloat).sum());
      if (pick(4) == 0) held_ = values[static_cast<size_t>(pick(static_cast<int>(values.size())))];
    }

    void backward(std::vector<Tensor>& out) {
      std::vector<Tensor> wanted = leaves_;
      wanted.insert(wanted.end(), {weight_, scale_, shift_});
      if (pick(6) == 0) {  // as an optimizer of another part of the model would
        const at::NoGradGuard no_grad;
        (pick(2) == 0 ? scale_ : weight_).mul_(1.25);
        wanted = {leaves_[static_cast<size_t>(pick(3))]};
      }
      if (held_.defined() && pick(2) == 0) {
        const at::NoGradGuard no_grad;
        held_.add_(1);
      }
      held_.reset();
      if (pick(3) == 0 && losses_.size() > 1) {  // apart, of a kept graph, or each by itself where nothing is shared
        const bool keep = pick(8) != 0;
        for (const Tensor& loss : losses_) differentiate(loss, wanted, keep, out);
        return;
      }
      Tensor loss = losses_[0];
      for (size_t i = 1; i < losses_.size(); ++i) loss = loss + losses_[i];
      const bool twice = pick(4) == 0;
      differentiate(loss, wanted, twice, out);
      if (twice) differentiate(loss, wanted, false, out);
    }

   private:
    int pick(int below) { return static_cast<int>(random_() % static_cast<uint64_t>(below)); }

    static void differentiate(const Tensor& loss, const std::vector<Tensor>& wanted, bool keep,
                              std::vector<Tensor>& out) {
      out.push_back(loss.detach().clone());
      for (Tensor& gradient : torch::autograd::grad({loss}, wanted, {}, keep, false, /*allow_unused=*/true))
        out.push_back(std::move(gradient));
    }

    Tensor op(const Tensor& x, const Tensor& z) {
      switch (pick(30)) {
        case 0:
          return at::gelu(x, pick(2) == 0 ? "none" : "tanh");
        case 1:
          return at::silu(x);
        case 2:
          return at::relu(x);
        case 3:
          return at::sigmoid(x);
        case 4:
          return at::tanh(x);
        case 5:
          return at::softplus(x);
        case 6:
          return at::leaky_relu(x, 0.1);
        case 7:
          return at::elu(x);
        case 8:
          return at::hardswish(x);
        case 9:
          return at::softmax(x, pick(2));
        case 10:
          return at::layer_norm(x.to(dtype_), {columns_}, scale_, shift_, pick(2) == 0 ? 1e-5 : 1e-6);
        case 11:
          return at::layer_norm(x, {columns_});
        case 12:
          return at::dropout(x, 0.2, true);
        case 13:
          return std::get<0>(at::native_dropout(x, 0.2, true));
        case 14:
          return x * z;
        case 15:
          return x * scale_;
        case 16:
          return x + z;
        case 17:
          return x - shift_;
        case 18:
          return x / (z.abs() + 1);
        case 19:
          return x * 0.75;
        case 20:
          return at::matmul(x.to(dtype_), weight_);
        case 21:
          return x.to(at::kDouble);
        case 22:
          return x.to(at::kFloat);
        case 23:
          return x.to(at::kBFloat16);
        case 24:
          return x.t().contiguous();
        case 25:
          return x.clone();
        case 26:
          return x * at::rsqrt(x.pow(2).mean({-1}, true) + 1e-6) * scale_;
        case 27:
          return at::silu(x) * z;
        case 28:
          return x.detach();
        default:
          return at::neg(x);
      }
    }

    /// Another layout of the same shape, at times.
    Tensor shaped(Tensor x) {
      if (x.size(0) != rows_) x = x.t();
      switch (pick(10)) {
        case 0:
          return x.t().contiguous().t();
        case 1:
          return at::cat({x, x}, 1).slice(1, 0, columns_);
        case 2:
          return x.unsqueeze(0).expand({2, rows_, columns_}).select(0, 1);
        case 3:
          return x.reshape({columns_, rows_}).reshape({rows_, columns_});
        default:
          return x;
      }
    }

    /// Saves x, as one of the ways in which ops do.
    Tensor consumed(const Tensor& x) {
      switch (pick(4)) {
        case 0:
          return at::matmul(x.to(dtype_), weight_);
        case 1:
          return x.sin();
        case 2:
          return x * leaves_[static_cast<size_t>(pick(3))];
        default:
          return at::matmul(x.to(dtype_).reshape({1, rows_, columns_}), weight_);
      }
    }

    void write_to(Tensor& x) {
      switch (pick(4)) {
        case 0: {
          const at::NoGradGuard no_grad;
          x.clamp_(-1, 1);
          return;
        }
        case 1: {
          const at::NoGradGuard no_grad;
          x.detach().mul_(1.5);
          return;
        }
        case 2:
          if (!x.requires_grad() || !x.is_leaf()) x.mul_(0.5);
          return;
        default:
          x = x.clone();
          at::relu_(x);
      }
    }

    std::mt19937_64 random_;
    int64_t rows_ = 0, columns_ = 0;
    at::ScalarType dtype_ = at::kFloat;
    std::vector<Tensor> leaves_;
    Tensor weight_, scale_, shift_;
    std::vector<Tensor> losses_;
    Tensor held_;
  };

  const uint64_t seed_;
};

}  // namespace ebbtide::test
