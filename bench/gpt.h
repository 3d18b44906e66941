// A byte-level GPT in nanoGPT's layout; gpt.py is the same model in Python.
#pragma once

#include <torch/torch.h>

#include <functional>
#include <memory>

namespace bench {

constexpr int64_t kByteValues = 256;
constexpr int64_t kHeadWidth = 64;

struct BlockImpl : torch::nn::Module {
  explicit BlockImpl(int64_t width)
      : attention_norm(register_module("attention_norm", norm(width))),
        query_key_value(register_module("query_key_value", torch::nn::Linear(width, 3 * width))),
        attention_out(register_module("attention_out", torch::nn::Linear(width, width))),
        mlp_norm(register_module("mlp_norm", norm(width))),
        mlp_in(register_module("mlp_in", torch::nn::Linear(width, 4 * width))),
        mlp_out(register_module("mlp_out", torch::nn::Linear(4 * width, width))) {}

  at::Tensor forward(at::Tensor x) {
    const int64_t batch = x.size(0), tokens = x.size(1), width = x.size(2);
    auto parts = query_key_value(attention_norm(x)).split(width, /*dim=*/2);
    for (at::Tensor& part : parts) part = part.view({batch, tokens, width / kHeadWidth, kHeadWidth}).transpose(1, 2);
    at::Tensor attended = at::scaled_dot_product_attention(parts[0], parts[1], parts[2], /*attn_mask=*/{},
                                                           /*dropout_p=*/0.0, /*is_causal=*/true);
    x = x + attention_out(attended.transpose(1, 2).reshape({batch, tokens, width}));
    return x + run_mlp([this](const at::Tensor& h) { return mlp_out(at::gelu(mlp_in(mlp_norm(h)))); }, x);
  }

  static torch::nn::LayerNorm norm(int64_t width) { return torch::nn::LayerNorm(torch::nn::LayerNormOptions({width})); }

  using Mlp = std::function<at::Tensor(const at::Tensor&)>;
  /// For those who would treat what is inside in another way.
  std::function<at::Tensor(const Mlp& mlp, const at::Tensor& x)> run_mlp = [](const Mlp& mlp, const at::Tensor& x) {
    return mlp(x);
  };

  torch::nn::LayerNorm attention_norm;
  torch::nn::Linear query_key_value, attention_out;
  torch::nn::LayerNorm mlp_norm;
  torch::nn::Linear mlp_in, mlp_out;
};
TORCH_MODULE(Block);

/// Maps bytes (batch, tokens), int64, and the bytes that follow them to the mean loss.
struct GptImpl : torch::nn::Module {
  GptImpl(int64_t layers, int64_t width, int64_t tokens)
      : byte_embedding(register_module("byte_embedding", torch::nn::Embedding(kByteValues, width))),
        position_embedding(register_module("position_embedding", torch::nn::Embedding(tokens, width))),
        blocks(register_module("blocks", torch::nn::ModuleList())),
        final_norm(register_module("final_norm", BlockImpl::norm(width))),
        head(register_module("head", torch::nn::Linear(torch::nn::LinearOptions(width, kByteValues).bias(false)))) {
    for (int64_t layer = 0; layer < layers; ++layer) blocks->push_back(Block(width));
    for (const auto& module : modules(/*include_self=*/false)) {
      if (auto* linear = module->as<torch::nn::Linear>()) {
        torch::nn::init::normal_(linear->weight, 0.0, 0.02);
        if (linear->bias.defined()) torch::nn::init::zeros_(linear->bias);
      } else if (auto* embedding = module->as<torch::nn::Embedding>()) {
        torch::nn::init::normal_(embedding->weight, 0.0, 0.02);
      }
    }
  }

  at::Tensor forward(const at::Tensor& inputs, const at::Tensor& targets) {
    at::Tensor x = byte_embedding(inputs) + position_embedding->weight.slice(0, 0, inputs.size(1));
    for (const auto& block : *blocks) x = run_block(std::dynamic_pointer_cast<BlockImpl>(block), x);
    at::Tensor logits = head(final_norm(x));
    return at::cross_entropy_loss(logits.view({-1, kByteValues}), targets.view(-1));
  }

  /// For those who would not keep what is inside.
  std::function<at::Tensor(const std::shared_ptr<BlockImpl>& block, const at::Tensor& x)> run_block =
      [](const std::shared_ptr<BlockImpl>& block, const at::Tensor& x) { return block->forward(x); };

  torch::nn::Embedding byte_embedding, position_embedding;
  torch::nn::ModuleList blocks;
  torch::nn::LayerNorm final_norm;
  torch::nn::Linear head;
};
TORCH_MODULE(Gpt);

}  // namespace bench
