#include "tests/hooks/random_graph.h"

#include <ebbtide/ebbtide.h>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/utils.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <random>
#include <utility>

#include "tests/hooks/models.h"
#include "tests/hooks/weak_node.h"

namespace ebbtide::test {
namespace {

using at::Tensor;

class Program {
 public:
  Program(uint64_t seed, const Treatment& treatment) : random_(seed), treatment_(treatment) {
    torch::manual_seed(seed);
    constexpr c10::ScalarType kTypes[] = {at::kFloat, at::kFloat, at::kDouble, at::kBFloat16};
    type_ = kTypes[draw(4)];
  }

  GraphOutcome run() {
    {
      std::optional<OffloadScope> scope;
      if (treatment_.store != nullptr) scope.emplace(*treatment_.store);
      const bool backward_inside = draw(3) == 0;
      make_leaves();
      outcome_.steps = 6 + draw(30);
      for (int64_t i = 0; i < outcome_.steps; ++i) {
        std::optional<Region> forced;
        if (treatment_.forced && treatment_.forced->step == i) forced.emplace("forced", treatment_.forced->policy);
        step();
      }
      auto losses = make_losses();
      if (!live_.empty() && chance(4)) held_ = any();
      live_.clear();
      if (!backward_inside) scope.reset();
      backward(losses);
      held_.reset();
    }
    if (!outcome_.errors.empty()) {  // the engine keeps what a backward that threw had queued until the next one
      const Tensor x = at::ones({1}).requires_grad_(true);
      torch::autograd::grad({x * 1}, {x});
    }
    outcome_.left = std::ranges::count_if(nodes_, [](const auto& node) { return !node.expired(); });
    return std::move(outcome_);
  }

 private:
  int64_t draw(int64_t below) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(below)); }
  bool chance(int64_t one_in) { return draw(one_in) == 0; }

  /// An error of torch's is a part of the outcome, and the program goes on without what failed.
  template <class Body>
  void noting_errors(Body&& body) {
    try {
      body();
    } catch (const c10::Error& error) {
      outcome_.errors.emplace_back(error.what_without_backtrace());
    } catch (const std::runtime_error& error) {
      outcome_.errors.emplace_back(error.what());
    }
  }

  // Leaves

  Tensor noise(at::IntArrayRef sizes) { return at::randn(sizes, type_); }
  /// In a region the same each time that it runs, and drawn from no generator of torch's, which would be put back for it.
  Tensor noise_of_region(at::IntArrayRef sizes) {
    if (region_->next == region_->weights.size()) {
      auto generator = at::make_generator<at::CPUGeneratorImpl>(region_->weights.size());
      const Tensor noise = at::randn(sizes, generator, at::TensorOptions().dtype(type_));
      region_->weights.push_back(leaf(noise) * 1);  // a copy: to the leaf somebody may write
    }
    return region_->weights[region_->next++];
  }
  Tensor leaf(const Tensor& tensor) {
    leaves_.push_back(tensor.detach().requires_grad_(true));
    return leaves_.back();
  }
  void make_leaves() {
    const int64_t b = 1 + draw(4), t = 8 + 8 * draw(4), d = 32 + 32 * draw(2);
    for (int64_t i = 0, count = 1 + draw(3); i < count; ++i) switch (draw(6)) {
        case 0:
          live_.push_back(leaf(noise({b, d, t}).transpose(1, 2)));
          break;
        case 1:
          live_.push_back(leaf(noise({b, t, 2 * d}).slice(2, d / 2, d / 2 + d)));
          break;
        case 2:
          live_.push_back(leaf(noise({1, t, d}).expand({b, t, d})));
          break;
        case 3: {  // of one storage
          const Tensor both = noise({2, b, t, d});
          live_.push_back(leaf(both[0]));
          live_.push_back(leaf(both[1]));
          break;
        }
        default:
          live_.push_back(leaf(noise({b, t, d})));
      }
  }
  Tensor vector(int64_t size) { return region_ != nullptr ? noise_of_region({size}) : leaf(noise({size})); }
  Tensor weight(int64_t in, int64_t out) {
    return region_ != nullptr ? noise_of_region({in, out}) : leaf(noise({in, out}) * 0.1);
  }

  // Operations

  const Tensor& any() { return live_[static_cast<size_t>(draw(static_cast<int64_t>(live_.size())))]; }
  /// What is as large as `x`: another value where there is one.
  Tensor like(const Tensor& x) {
    std::vector<Tensor> found;
    for (const Tensor& value : live_)
      if (value.sizes() == x.sizes()) found.push_back(value);
    return found.empty() ? x : found[static_cast<size_t>(draw(static_cast<int64_t>(found.size())))];
  }
  int64_t last(const Tensor& x) const { return x.size(-1); }

  void step() {
    if (live_.size() > 10 || (live_.size() > 2 && chance(10)))  // a value dies, and maybe all that its branch saved
      live_.erase(live_.begin() + draw(static_cast<int64_t>(live_.size())));
    const Tensor x = any();
    noting_errors([&] {
      Tensor y;
      switch (draw(7)) {
        case 0:
        case 1:
          y = unary(x);
          break;
        case 2:
          y = binary(x);
          break;
        case 3:
          y = heavy(x);
          break;
        case 4:
          y = view(x);
          break;
        case 5:
          y = region(x);
          break;
        default:
          return chance(3) ? write(x) : live_.push_back(unary(x));
      }
      if (y.grad_fn()) nodes_.emplace_back(y.grad_fn());
      live_.push_back(std::move(y));
    });
  }

  Tensor unary(const Tensor& x) {
    const auto size = last(x);
    switch (draw(29)) {
      case 0:
        return at::relu(x);
      case 1:
        return at::gelu(x);
      case 2:
        return at::gelu(x, "tanh");
      case 3:
        return at::silu(x);
      case 4:
        return at::sigmoid(x);
      case 5:
        return at::tanh(x);
      case 6:
        return at::softplus(x);
      case 7:
        return at::leaky_relu(x, 0.1);
      case 8:
        return at::elu(x);
      case 9:
        return at::hardswish(x);
      case 10:
        return at::mish(x);
      case 11:
        return at::exp(x * 0.1);
      case 12:
        return at::sin(x);
      case 13:
        return at::softmax(x, chance(3) ? 0 : -1);
      case 14:
        return at::log_softmax(x, -1);
      case 15:
        return at::layer_norm(x, {size}, vector(size), vector(size), chance(2) ? 1e-5 : 1e-6);
      case 16:
        return at::layer_norm(x, {size});
      case 17:
        return x * at::rsqrt(x.pow(2).mean(-1, true) + 1e-6) * vector(size);
      case 18:
        return at::rms_norm(x, {size}, vector(size), 1e-6);
      case 19:
        return at::group_norm(x, x.size(1) % 2 == 0 ? 2 : 1, vector(x.size(1)), vector(x.size(1)));
      case 20:
        return at::dropout(x, 0.3, true);
      case 21:
        return x.clone();
      case 22:
        return x.contiguous();
      case 23:
        return x.to(chance(2) ? at::kBFloat16 : at::kFloat);
      case 24:
        return at::where(x > 0, x, x * 0.5);
      case 25:
        return std::get<0>(at::native_dropout(x, 0.2, true));
      case 26:
        return x * 0.75;
      case 27:
        return x.transpose(1, 2).contiguous().transpose(1, 2);
      default:
        return Square::apply(x);
    }
  }

  Tensor binary(const Tensor& x) {
    const Tensor y = like(x);
    switch (draw(9)) {
      case 0:
        return x + y;
      case 1:
        return at::sub(x, y, 0.7);
      case 2:
        return x * y;
      case 3:
        return x / (y * y + 2);
      case 4:
        return at::silu(x) * y;  // a gated unit
      case 5:
        return x * vector(last(x));
      case 6:
        return at::maximum(x, y);
      case 7:
        return at::cat({x, y}, chance(2) ? -1 : 1);
      default:
        return at::lerp(x, y.to(x.scalar_type()), 0.3);
    }
  }

  Tensor heavy(const Tensor& x) {
    if (last(x) > 256 || x.size(1) > 256) return x.narrow(-1, 0, last(x) / 2).sin();
    switch (draw(5)) {
      case 0:
      case 1:
        return at::matmul(x, weight(last(x), 32 + 32 * draw(2)).to(x.scalar_type()));
      case 2:
        return at::linear(x, weight(48, last(x)).to(x.scalar_type()), vector(48).to(x.scalar_type()));
      case 3: {
        const Tensor y = like(x).to(x.scalar_type());
        return at::bmm(at::softmax(at::bmm(x, y.transpose(1, 2)) * 0.1, -1), y);
      }
      default: {
        const Tensor heads = x.unsqueeze(1);
        return at::scaled_dot_product_attention(heads, heads, like(x).to(x.scalar_type()).unsqueeze(1)).squeeze(1);
      }
    }
  }

  Tensor view(const Tensor& x) {
    switch (draw(8)) {
      case 0:
        return x.transpose(1, 2);
      case 1:
        return x.transpose(0, 1);
      case 2:
        return x.size(1) < 8 ? x * 2 : x.slice(1, 1, x.size(1) - 1);
      case 3:
        return last(x) < 16 ? x * 2 : x.chunk(2, -1)[static_cast<size_t>(draw(2))];
      case 4:
        return x.reshape({x.size(0), x.size(1) * last(x), 1}).reshape(x.sizes());
      case 5:
        return x.slice(2, 0, last(x), last(x) < 16 ? 1 : 2);
      case 6:
        return x.select(0, 0).unsqueeze(0).expand(x.sizes());
      default:
        return x.unsqueeze(2).detach().squeeze(2) + x;
    }
  }

  // Regions

  /// What a region's function draws from while it runs, each time the same.
  struct InRegion {
    std::vector<Tensor> weights;  // made in the first run
    size_t next = 0;
    std::vector<std::shared_ptr<InRegion>> inside;  // regions in it, the same
    size_t next_inside = 0;
  };
  std::shared_ptr<InRegion> next_region() {
    if (region_ == nullptr) return std::make_shared<InRegion>();
    if (region_->next_inside == region_->inside.size()) region_->inside.push_back(std::make_shared<InRegion>());
    return region_->inside[region_->next_inside++];
  }
  /// The program, while it is in a region.
  class Inside {
   public:
    Inside(Program& program, uint64_t seed, InRegion& region, std::vector<Tensor> inputs)
        : program_(program), random_(seed), live_(std::move(inputs)), region_(&region) {
      region.next = region.next_inside = 0;
      exchange();
    }
    ~Inside() { exchange(); }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;

   private:
    void exchange() {
      std::swap(program_.random_, random_);
      std::swap(program_.live_, live_);
      std::swap(program_.region_, region_);
    }
    Program& program_;
    std::mt19937_64 random_;
    std::vector<Tensor> live_;
    InRegion* region_;
  };

  Tensor region(const Tensor& x) {
    // Copies: nobody else writes to what a region reads, which is an error for a region and may be none without it.
    const std::vector<Tensor> inputs{x * 1, like(x) * 1};
    const auto function = [this, seed = random_(), of_region = next_region()](const std::vector<Tensor>& values) {
      const Inside inside(*this, seed, *of_region, values);
      for (int64_t i = 0, count = 1 + draw(5); i < count; ++i) live_.push_back(step_inside());
      const Tensor& result = live_.back();
      const bool shares = std::ranges::any_of(values, [&](const Tensor& value) { return result.is_alias_of(value); });
      return shares ? result * 1 : result;
    };
    return treatment_.checkpoints ? checkpoint(function, inputs) : function(inputs);
  }
  Tensor step_inside() {
    const Tensor x = any();
    switch (draw(7)) {
      case 0:
        return binary(x);
      case 1:
        return heavy(x);
      case 2:
        return view(x);
      case 3:
        return chance(2) ? region(x) : at::dropout(x, 0.4, true);
      case 4:
        return x.clone().mul_(2).sigmoid_();
      default:
        return unary(x);
    }
  }

  void write(const Tensor& x) {
    if (x.is_leaf()) return live_.push_back(x * 1.5);
    Tensor target = x;
    switch (draw(8)) {
      case 0:
        target.relu_();
        return;
      case 5: {
        const torch::NoGradGuard no_grad;
        target.clamp_(-1, 1);
        return;
      }
      case 6: {
        const torch::NoGradGuard no_grad;
        target.detach().mul_(1.5);
        return;
      }
      case 1:
        target.mul_(1.5);
        return;
      case 2:
        target.add_(like(x).to(x.scalar_type()));
        return;
      case 3:
        target.slice(1, 0, 1).add_(1);
        return;
      case 4:
        target.narrow(-1, 0, 1).copy_(like(x).narrow(-1, 0, 1));
        return;
      default:
        live_.push_back(x.clone().mul_(2).sigmoid_());
    }
  }

  // Backward

  std::vector<Tensor> make_losses() {
    std::vector<Tensor> losses;
    for (int i = 0; i < 2; ++i) {
      Tensor loss;
      for (const Tensor& value : live_)
        noting_errors([&] {  // a view may be of what a write has made invalid
          if (!value.requires_grad() || (loss.defined() && chance(2))) return;
          const Tensor part = value.to(at::kDouble).mul(0.5).pow(2).mean();
          loss = loss.defined() ? loss + part : part;
        });
      if (loss.defined()) losses.push_back(loss);
    }
    return losses;
  }

  std::vector<Tensor> grad(const Tensor& loss, const std::vector<Tensor>& inputs, bool retain = false,
                           bool create = false) {
    return torch::autograd::grad({loss}, inputs, {}, retain, create, /*allow_unused=*/true);
  }
  void note(const std::vector<Tensor>& gradients) {
    for (const Tensor& gradient : gradients)
      outcome_.gradients.push_back(gradient.defined() ? gradient.detach().clone() : at::empty({0}));
  }

  void backward(std::vector<Tensor>& losses) {
    const auto kind = draw(8);
    if (kind == 0) return losses.clear();  // a graph that nobody wants
    if (chance(6))                         // as an optimizer of another part of the model, or of another pass, would
      noting_errors([&] {
        const torch::NoGradGuard no_grad;
        leaves_[static_cast<size_t>(draw(static_cast<int64_t>(leaves_.size())))].mul_(1.25);
      });
    if (held_.defined() && chance(2))
      noting_errors([&] {
        const torch::NoGradGuard no_grad;
        held_.add_(1);
      });
    held_.reset();
    for (size_t i = 0; i < losses.size(); ++i)
      noting_errors([&] {
        const bool more = i + 1 < losses.size();
        switch (kind) {
          case 1:
            note(grad(losses[i], leaves_, true));
            note(grad(losses[i], leaves_, more));
            break;
          case 2: {
            std::vector<Tensor> some = leaves_;
            std::ranges::shuffle(some, random_);
            some.resize(1 + some.size() / 2);
            note(grad(losses[i], some, more));
            break;
          }
          case 3: {
            Tensor norm;
            for (const Tensor& gradient : grad(losses[i], leaves_, true, true))
              if (gradient.defined() && gradient.requires_grad()) {
                const Tensor part = gradient.to(at::kDouble).pow(2).sum();
                norm = norm.defined() ? norm + part : part;
              }
            if (norm.defined()) note(grad(norm, leaves_, true));
            break;
          }
          default:
            note(grad(losses[i], leaves_, more));
        }
        losses[i] = Tensor();
      });
  }

  std::mt19937_64 random_;
  const Treatment treatment_;
  InRegion* region_ = nullptr;  // that the program is in
  c10::ScalarType type_ = at::kFloat;
  std::vector<Tensor> leaves_;
  std::vector<Tensor> live_;
  Tensor held_;  // a value that outlives the forward
  std::vector<WeakNode> nodes_;
  GraphOutcome outcome_;
};

}  // namespace

GraphOutcome run_random_graph(uint64_t seed, const Treatment& treatment) {
  return Program(seed, treatment).run();
}

}  // namespace ebbtide::test
