// Small models of the kinds that people train, which save tensors in every way that autograd knows.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/modules.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <functional>
#include <memory>
#include <string>
#include <tuple>

namespace ebbtide::test {

namespace nn = torch::nn;

/// A custom function that saves both what came in and what it made.
struct Square : torch::autograd::Function<Square> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x) {
    at::Tensor y = x * x;
    context->save_for_backward({x, y});
    return y;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    return {gradients[0] * 2 * saved[0] + 0 * saved[1]};
  }
};

struct CustomFunctionNet : nn::Module {
  nn::Linear first = register_module("first", nn::Linear(64, 128));
  nn::Linear second = register_module("second", nn::Linear(128, 64));
  at::Tensor forward(const at::Tensor& x) { return second(Square::apply(at::tanh(first(x)))); }
};

struct Recurrent : nn::Module {
  nn::LSTM lstm = register_module("lstm", nn::LSTM(nn::LSTMOptions(32, 64).num_layers(2).batch_first(true)));
  nn::Linear head = register_module("head", nn::Linear(64, 8));
  at::Tensor forward(const at::Tensor& x) { return head(std::get<0>(lstm(x))); }
};

struct Transformer : nn::Module {
  explicit Transformer(double dropout = 0.1)
      : layer(register_module("layer",
                              nn::TransformerEncoderLayer(
                                  nn::TransformerEncoderLayerOptions(64, 4).dim_feedforward(256).dropout(dropout)))) {}
  nn::TransformerEncoderLayer layer;
  at::Tensor forward(const at::Tensor& x) { return layer(x); }
};

inline nn::Sequential mlp() {
  return nn::Sequential(nn::Linear(64, 256), nn::GELU(), nn::LayerNorm(nn::LayerNormOptions({256})),
                        nn::Linear(256, 256), nn::ReLU(nn::ReLUOptions().inplace(true)), nn::Linear(256, 16));
}

inline nn::Sequential convolutional() {
  return nn::Sequential(nn::Conv2d(nn::Conv2dOptions(3, 16, 3).padding(1)), nn::BatchNorm2d(16), nn::ReLU(),
                        nn::Conv2d(nn::Conv2dOptions(16, 32, 3).stride(2)), nn::BatchNorm2d(32), nn::SiLU(),
                        nn::MaxPool2d(2), nn::Flatten(), nn::Linear(800, 10));
}

/// A model, its input, and a way to call it.
struct Subject {
  std::shared_ptr<nn::Module> module;
  at::Tensor input;
  std::function<at::Tensor(const at::Tensor&)> forward;
};

template <class Module>
Subject subject(std::shared_ptr<Module> module, at::IntArrayRef input) {
  return {module, torch::randn(input), [module](const at::Tensor& x) { return module->forward(x); }};
}

/// The same each time.
inline Subject build(const std::string& name) {
  torch::manual_seed(1);
  if (name == "mlp") return subject(mlp().ptr(), {64, 64});
  if (name == "conv") return subject(convolutional().ptr(), {8, 3, 24, 24});
  if (name == "lstm") return subject(std::make_shared<Recurrent>(), {8, 24, 32});
  if (name == "transformer") return subject(std::make_shared<Transformer>(), {32, 4, 64});
  if (name == "transformer_without_dropout") return subject(std::make_shared<Transformer>(0), {32, 4, 64});
  return subject(std::make_shared<CustomFunctionNet>(), {64, 64});
}

}  // namespace ebbtide::test
