// What a recipe must not trust: graphs that share, end early or are written to give what they give without the store.
#include <ebbtide/hooks/module_parameters.h>
#include <ebbtide/hooks/offload_scope.h>
#include <ebbtide/store/store_core.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <tests/hooks/autocast.h>
#include <tests/hooks/support.h>
#include <torch/csrc/autograd/custom_function.h>

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace ebbtide::test {
namespace {

using testing::HasSubstr;
using Tensors = std::vector<at::Tensor>;

at::Tensor square(int seed) {
  return leaf(seed).detach().view({64, 64}).clone().requires_grad_(true);
}
Tensors grads(const at::Tensor& of, const Tensors& to, bool keep = false, bool create = false) {
  return torch::autograd::grad({of}, to, {}, keep, create);
}

class RecipeTrustTest : public testing::Test {
 protected:
  RecipeTrustTest() { store_.core()->follow_plans(false); }  // which may find other ways cheaper

  /// Calls `forward` under the store, if there is one. Its local variables are gone before the scope ends.
  template <class Forward>
  static auto under(Store* store, Forward&& forward) {
    std::optional<OffloadScope> scope;
    if (store != nullptr) scope.emplace(*store);
    return forward();
  }

  /// `program` gives the same without a store and, each time, under one without any budget.
  void expect_same(const std::function<Tensors(Store*)>& program, int64_t recomputed_at_least) {
    const Tensors reference = program(nullptr);
    for (int time = 0; time < 3; ++time) EXPECT_TRUE(same_bits(program(&store_), reference)) << "time " << time;
    EXPECT_GE(store_.stats().recomputed.tensors, recomputed_at_least) << store_.report();
    EXPECT_LE(store_.stats().recompute_s, 60);
    expect_all_is_over(store_);
  }

  const Folder folder_;
  Store store_{spilling(folder_)};
};

/// h is saved, y = gelu(h) too.
at::Tensor gelu_of(const at::Tensor& x) {
  return at::gelu(x * 2);
}

TEST_F(RecipeTrustTest, AProducerWhoseBackwardHasRunIsNotNeeded) {
  expect_same(
      [](Store* store) {
        const at::Tensor x = square(1), a = square(2), b = square(3);
        const Tensors z = under(store, [&] {
          const at::Tensor y = gelu_of(x);
          return Tensors{(y * a).sum(), (y * b).sum()};
        });
        Tensors all = grads(z[0], {x, a});  // releases the gelu's node
        all.push_back(grads(z[1], {b})[0]);
        return all;
      },
      3);
}

TEST_F(RecipeTrustTest, AGraphThatSavesADetachedResultOutlivesItsProducer) {
  expect_same(
      [](Store* store) {
        const at::Tensor x = square(1), a = square(2), b = square(3);
        const Tensors z = under(store, [&] {
          const at::Tensor y = gelu_of(x);
          return Tensors{(y * a).sum(), (y.detach() * b).sum()};
        });
        Tensors all = grads(z[0], {x, a});
        all.push_back(grads(z[1], {b})[0]);
        return all;
      },
      3);
}

struct SavesWhatIsForeign : torch::autograd::Function<SavesWhatIsForeign> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& foreign) {
    context->save_for_backward({foreign});
    return x.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    return {gradients[0] * context->get_saved_variables()[0].detach(), at::Tensor()};
  }
};

TEST_F(RecipeTrustTest, AFunctionThatSavesAForeignResultGetsIt) {
  expect_same(
      [](Store* store) {
        const at::Tensor x = square(1), b = square(3);
        const Tensors z = under(store, [&] {
          const at::Tensor y = gelu_of(x);
          return Tensors{y.sum(), SavesWhatIsForeign::apply(b, y).sum()};
        });
        Tensors all = grads(z[0], {x});
        all.push_back(grads(z[1], {b})[0]);
        return all;
      },
      3);
}

TEST_F(RecipeTrustTest, TwoThreadsShareAProducer) {
  expect_same(
      [](Store* store) {
        const at::Tensor x = square(1), a = square(2), b = square(3);
        const Tensors z = under(store, [&] {
          const at::Tensor y = gelu_of(x);
          return Tensors{(y * a).sum(), (y * b).sum()};
        });
        Tensors all(2);
        for (int run = 0; run < 50; ++run) {
          std::thread other([&] { all[0] = grads(z[0], {a}, true)[0]; });
          all[1] = grads(z[1], {b}, true)[0];
          other.join();
        }
        return all;
      },
      3);
}

TEST_F(RecipeTrustTest, ForwardsOnManyThreadsShareOneStore) {
  const auto program = [this](Store* store, int seed) {
    const at::Tensor x = square(seed), b = square(seed + 1);
    return grads(under(store,
                       [&] {
                         const at::Tensor h = x * 2;
                         const at::Tensor y = at::layer_norm(at::gelu(h), {64});
                         return (y.to(at::kBFloat16).to(at::kFloat) * b * at::silu(h)).sum();
                       }),
                 {x, b});
  };
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 60; ++i)
        wrong += !same_bits(program(&store_, 7 * t + i % 5), program(nullptr, 7 * t + i % 5));
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  // Not one a pass: where another thread needs room, what rests on something still in a forward's hands leaves as bytes.
  EXPECT_GT(store_.stats().recomputed.tensors, 0);
  expect_all_is_over(store_);
}

TEST_F(RecipeTrustTest, ParametersMayChangeBeforeTheBackward) {
  expect_same(
      [](Store* store) {
        const at::Tensor x = square(1), b = square(3);
        const at::Tensor weight = leaf(4, 64), bias = leaf(5, 64);
        const at::Tensor z = under(store, [&] { return (at::layer_norm(x * 2, {64}, weight, bias) * b).sum(); });
        {
          const at::NoGradGuard no_grad;
          weight.mul_(3);
          bias.zero_();
        }
        return grads(z, {b});
      },
      3);
}

TEST_F(RecipeTrustTest, AnInputWrittenToBehindAutogradIsNotReadAgain) {
  expect_same(
      [](Store* store) {
        const at::Tensor x = square(1), b = square(3);
        const at::Tensor z = under(store, [&] {
          const at::Tensor h = x * 2;
          const at::Tensor y = at::gelu(h);
          const at::Tensor sum = (y * b).sum();
          const at::NoGradGuard no_grad;
          h.add_(1);
          return sum;
        });
        return grads(z, {b});
      },
      0);
  EXPECT_EQ(store_.stats().recomputed.tensors, 0);
}

TEST_F(RecipeTrustTest, AnInputHeldAndWrittenToLaterIsNotReadAgain) {
  expect_same(
      [](Store* store) {
        const at::Tensor x = square(1), b = square(3);
        at::Tensor h;
        const at::Tensor z = under(store, [&] {
          h = x * 2;
          return (at::gelu(h) * b).sum();
        });
        {
          const at::NoGradGuard no_grad;
          h.add_(1);
        }
        h.reset();
        return grads(z, {b});
      },
      0);
  EXPECT_EQ(store_.stats().recomputed.tensors, 0);
}

TEST_F(RecipeTrustTest, AResultThatNobodySavedMayBeWrittenToBetweenTwoOps) {
  enum class Write { kNone, kBehindAutograd, kSeenByAutograd };
  for (const Write write : {Write::kNone, Write::kBehindAutograd, Write::kNone, Write::kSeenByAutograd}) {
    expect_same(
        [write](Store* store) {
          const at::Tensor x = square(1), b = square(3);
          const at::Tensor z = under(store, [&] {
            const at::Tensor h = x * 2;
            const at::Tensor saved = h.cos();
            at::Tensor n = at::neg(h);  // nobody saves it
            if (write == Write::kSeenByAutograd) n.mul_(1.5);
            if (write == Write::kBehindAutograd) {
              const at::NoGradGuard no_grad;
              n.clamp_min_(0.125);
            }
            return (n.to(at::kDouble) * b).sum() + saved.sum();
          });
          return grads(z, {b, x});
        },
        3);
  }
}

TEST_F(RecipeTrustTest, AResultWrittenToInPlaceIsStored) {
  expect_same(
      [](Store* store) {
        const at::Tensor x = square(1), b = square(3);
        const at::Tensor z = under(store, [&] {
          const at::Tensor h = x * 2;
          const at::Tensor saved = h.cos();
          at::Tensor y = at::neg(h);
          at::relu_(y);
          return (y * b).sum() + saved.sum();
        });
        return grads(z, {b, x});
      },
      0);
}

TEST_F(RecipeTrustTest, NormsOfOneShapeMayHaveDifferentEps) {
  expect_same(
      [](Store* store) {
        const at::Tensor x = square(1), a = square(2), b = square(3), c = square(4);
        const at::Tensor z = under(store, [&] {
          const at::Tensor first = at::layer_norm(x * 1e-3, {64}, {}, {}, 1e-5) * a;
          const at::Tensor second = at::layer_norm(x * 1e-3, {64}, {}, {}, 1e-6) * b;
          const at::Tensor third = at::layer_norm(x * 1e-3, {64}, {}, {}, 0.02) * c;  // not usual: stored
          return (first + second + third).sum();
        });
        return grads(z, {x, a, b, c});
      },
      6);
  EXPECT_EQ(store_.stats().recomputed.tensors, 6);
}

TEST_F(RecipeTrustTest, AKeptGraphAndADoubleBackward) {
  expect_same(
      [](Store* store) {
        const at::Tensor x = square(1), a = square(2);
        const at::Tensor z = under(store, [&] { return (gelu_of(x).sigmoid() * a).sum(); });
        Tensors all = grads(z, {x, a}, true);
        for (const at::Tensor& again : grads(z, {x, a}, true)) all.push_back(again);
        const at::Tensor first = grads(z, {x}, true, true)[0];
        all.push_back(grads(first.pow(2).sum(), {x})[0]);
        return all;
      },
      3);
}

TEST_F(RecipeTrustTest, AnotherThreadCountInTheBackwardChangesNothing) {
  constexpr int64_t kLarge = 512;  // so that every op is split among threads
  const auto program = [](Store* store) {
    const at::Tensor x = leaf(1, kLarge * kLarge).detach().view({kLarge, kLarge}).requires_grad_(true);
    const at::Tensor b = leaf(2, kLarge * kLarge).detach().view({kLarge, kLarge}).requires_grad_(true);
    at::set_num_threads(3);
    const at::Tensor z = under(store, [&] {
      const at::Tensor h = x * 2;
      return (at::gelu(h, "tanh") * at::softmax(h, 0) * at::silu(h) * b).sum();
    });
    at::set_num_threads(1);
    Tensors all = grads(z, {b});
    EXPECT_EQ(at::get_num_threads(), 1);
    return all;
  };
  expect_same(program, 3);
}

struct WritesToWhatItSaved : torch::autograd::Function<WritesToWhatItSaved> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x) {
    context->save_for_backward({x});
    return x.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const at::NoGradGuard no_grad;
    context->get_saved_variables()[0].mul_(2);
    return {gradients[0]};
  }
};

TEST_F(RecipeTrustTest, ABackwardThatWritesToAnInputOfARedoIsAnError) {
  const at::Tensor x = square(1), b = square(3);
  const Tensors z = under(&store_, [&] {
    const at::Tensor h = x * 2;
    return Tensors{WritesToWhatItSaved::apply(h).sum(), (at::gelu(h) * b).sum()};
  });
  (void)grads(z[0], {x}, true);
  EXPECT_THAT([&] { (void)grads(z[1], {b}); }, testing::ThrowsMessage<c10::Error>(HasSubstr("modified by an inplace")));
}

TEST_F(RecipeTrustTest, MatmulsAreRunAgainOnlyWhereTheyAreAskedFor) {
  const auto program = [](Store* store) {
    const at::Tensor x = square(1), b = square(3);
    return grads(under(store,
                       [&] {
                         const at::Tensor h = x * 2, g = b * 3;
                         return (at::gelu(at::mm(h, g)) * b).sum();
                       }),
                 {x, b});
  };
  expect_same(program, 3);
  EXPECT_FALSE(store_.stats().recomputed_ops.contains("mm")) << store_.report();
  store_.core()->use_costly_recipes(true);
  expect_same(program, 6);
  EXPECT_EQ(store_.stats().recomputed_ops.at("mm").tensors, 3);
}

TEST_F(RecipeTrustTest, MatmulsAreRunAgainWhereNothingCanLeave) {
  const auto program = [](Store* store) {
    const at::Tensor x = square(1), b = square(3);
    return grads(under(store,
                       [&] {
                         const at::Tensor h = x * 2, g = b * 3;
                         at::Tensor sum = at::zeros({});
                         for (int i = 0; i < 6; ++i) sum = sum + at::mm(i % 2 == 0 ? h : h.t(), g).sin().sum();
                         return sum;
                       }),
                 {x, b});
  };
  Store store(keeping(KiB(40)));  // h and g: an error where more has to stay
  for (int pass = 0; pass < 6; ++pass) EXPECT_TRUE(same_bits(program(&store), program(nullptr))) << pass;
  EXPECT_EQ(store.stats().recomputed_ops.at("mm").tensors, 36) << store.report();
  EXPECT_GT(store.stats().plans, 0);
  expect_all_is_over(store);
}

TEST_F(RecipeTrustTest, AMatmulThatNobodySavedIsNotRunAgainOnTheWayToAnother) {
  store_.core()->use_costly_recipes(true);
  expect_same(
      [](Store* store) {
        const at::Tensor x = square(1), b = square(3);
        return grads(under(store,
                           [&] {
                             const at::Tensor h = x * 2, g = b * 3;
                             return ((at::mm(h, g) + h) * b).sum();
                           }),
                     {x, b});
      },
      0);
  EXPECT_FALSE(store_.stats().recomputed_ops.contains("add")) << store_.report();
}

/// A weight of a model whose owner announces its changes: large, so that recipes read it itself.
class WeightTest : public RecipeTrustTest {
 protected:
  WeightTest() { announce_parameter_changes(*store_.core()); }

  /// A step whose saved matmul rests on `weight`; `between` runs between forward and backward.
  Tensors step(
      Store* store, const at::Tensor& weight, const std::function<void()>& between = [] {}) {
    const at::Tensor x = square(1), b = square(3);
    const at::Tensor z = under(store, [&] { return (at::mm(x * 2, weight) * b).sum(); });
    between();
    return grads(z, {b});
  }
  void past_the_trial(const at::Tensor& weight) {
    attach_tensor(store_, weight);
    for (int i = 0; i < 2; ++i) {
      (void)step(&store_, weight);
      announce(weight);
    }
    EXPECT_FALSE(store_.stats().recomputed_ops.contains("mm"));
  }
  void announce(const at::Tensor& weight) {
    before_parameters_change(*store_.core(), {&weight, 1}, ChangedBy::kOptimizer);
  }
  static void change(const at::Tensor& weight) {
    const at::NoGradGuard no_grad;
    weight.mul_(3);
  }
};

TEST_F(WeightTest, IsReadAgainAfterTwoStepsOnTrial) {
  store_.core()->use_costly_recipes(true);
  const at::Tensor weight = square(7);
  past_the_trial(weight);
  EXPECT_TRUE(same_bits(step(&store_, weight), step(nullptr, weight)));
  EXPECT_EQ(store_.stats().recomputed_ops.at("mm").tensors, 1);
  expect_all_is_over(store_);
}

TEST_F(WeightTest, AChangeThatIsAnnouncedFindsTheBytesMade) {
  store_.core()->use_costly_recipes(true);
  const at::Tensor weight = square(7);
  past_the_trial(weight);
  const Tensors reference = step(nullptr, weight);
  EXPECT_TRUE(same_bits(step(&store_, weight,
                             [&] {
                               announce(weight);
                               change(weight);
                             }),
                        reference));
  expect_all_is_over(store_);
}

TEST_F(WeightTest, AChangeThatIsNotIsAnErrorThatSaysWhatToDo) {
  store_.core()->use_costly_recipes(true);
  const at::Tensor weight = square(7);
  past_the_trial(weight);
  EXPECT_THAT([&] { (void)step(&store_, weight, [&] { change(weight); }); },
              testing::ThrowsMessage<c10::Error>(testing::AllOf(
                  HasSubstr("mm"), HasSubstr("is at version 1; expected version 0"), HasSubstr("recompute=False"))));
}

/// Ops of one site are not all run on trial; their parameters are all looked at.
TEST_F(WeightTest, AHiddenChangeOfAnyParameterEndsTheTrial) {
  for (const bool changes : {false, true}) {
    const Folder folder;
    Store store(spilling(folder));
    announce_parameter_changes(*store.core());
    store.core()->use_costly_recipes(true);
    const at::Tensor weights[] = {square(7), square(8)};
    for (const at::Tensor& weight : weights) attach_tensor(store, weight);
    for (int i = 0; i < 4; ++i) {
      const at::Tensor x = square(1), b = square(3);
      const at::Tensor z = under(&store, [&] {
        at::Tensor sum = at::zeros({});
        for (const at::Tensor& weight : weights) sum = sum + (at::mm(x * 2, weight) * b).sum();
        return sum;
      });
      at::Tensor hidden = weights[1].variable_data();
      if (changes) hidden.mul_(3);
      (void)grads(z, {b});
      if (changes) hidden.div_(3);
      before_parameters_change(*store.core(), weights, ChangedBy::kOptimizer);
    }
    EXPECT_EQ(store.stats().recomputed_ops.contains("mm"), !changes) << store.report();
    EXPECT_EQ(store.stats().unequal_redos.contains("mm"), changes);
    expect_all_is_over(store);
  }
}

TEST_F(WeightTest, AChangeInTheForwardBeforeTheResultIsSavedIsSeen) {
  const at::Tensor weight = square(7);
  attach_tensor(store_, weight);
  const auto program = [&](Store* store) {
    const at::Tensor b = square(3);
    const at::Tensor z = under(store, [&] {
      const at::Tensor half = weight.to(at::kBFloat16);
      change(weight);
      return (half.cos() * half * b).sum();
    });
    return grads(z, {b});
  };
  for (int i = 0; i < 4; ++i) {
    const at::Tensor before = weight.detach().clone();
    const Tensors with = program(&store_);
    announce(weight);
    {
      const at::NoGradGuard no_grad;
      weight.copy_(before);
    }
    EXPECT_TRUE(same_bits(with, program(nullptr)));
  }
  EXPECT_FALSE(store_.stats().recomputed_ops.contains("cast")) << store_.report();
}

/// Autocast goes on with the cast that it has, though the parameter was written to since.
TEST_F(WeightTest, ACastWeightIsMadeFromTheParameterOnlyIfThatWasNotWrittenToSince) {
  store_.core()->use_costly_recipes(true);
  const at::Tensor weight = square(7);
  attach_tensor(store_, weight);
  const auto program = [&](Store* store, bool write) {
    const at::Tensor x = square(1), b = square(3);
    const at::Tensor z = under(store, [&] {
      const Autocast autocast;
      const at::Tensor first = at::mm(x * 3, weight).sum();  // nobody saves the product: the cast alone is there now
      if (write) change(weight);
      return (at::mm(x * 2, weight) * b).sum() + first;
    });
    return grads(z, {b});
  };
  for (const bool write : {false, false, false, true}) {
    const at::Tensor before = weight.detach().clone();
    const Tensors with = program(&store_, write);
    announce(weight);
    {
      const at::NoGradGuard no_grad;
      weight.copy_(before);
    }
    EXPECT_TRUE(same_bits(with, program(nullptr, write)));
    const at::NoGradGuard no_grad;
    weight.copy_(before);
  }
  EXPECT_GE(store_.stats().recomputed_ops.at("mm").tensors, 1) << store_.report();
  expect_all_is_over(store_);
}

TEST_F(WeightTest, OneThatNobodyAnnouncesIsNotRead) {
  store_.core()->use_costly_recipes(true);
  Store quiet(spilling(folder_));
  const at::Tensor weight = square(7);
  attach_tensor(quiet, weight);
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(same_bits(step(&quiet, weight), step(nullptr, weight)));
    before_parameters_change(*quiet.core(), {&weight, 1}, ChangedBy::kOptimizer);
  }
  EXPECT_FALSE(quiet.stats().recomputed_ops.contains("mm"));
  expect_all_is_over(quiet);
}

/// 10^4 passes with EBBTIDE_LONG.
TEST_F(RecipeTrustTest, PassesLeaveNoMemoryBehind) {
  const auto passes = [&](int count) {
    const at::Tensor x = square(1), b = square(3);
    for (int i = 0; i < count; ++i)
      (void)grads(under(&store_,
                        [&] {
                          const at::Tensor h = x * 2;
                          const at::Tensor saved = h.cos();
                          return (at::layer_norm(at::gelu(h), {64}) * b + saved).to(at::kDouble).sin().sum();
                        }),
                  {x, b});
    return static_cast<int64_t>(::mallinfo2().uordblks);
  };
  const int64_t before = passes(400);  // what is pruned now and then has reached its size
  const int count = std::getenv("EBBTIDE_LONG") != nullptr ? 10000 : 400;
  EXPECT_LT(passes(count) - before, KiB(128).count());
  EXPECT_GE(store_.stats().recomputed.tensors, count);
  expect_all_is_over(store_);
}

TEST_F(RecipeTrustTest, SwitchedOffNothingIsRunAgain) {
  Options options = spilling(folder_);
  options.recompute = false;
  Store store(options);
  const at::Tensor x = square(1), b = square(3);
  (void)grads(under(&store, [&] { return (gelu_of(x) * b).sum(); }), {x, b});
  EXPECT_EQ(store.stats().recomputed.tensors, 0);
  EXPECT_GT(store.stats().spilled.tensors, 0);
}

TEST_F(RecipeTrustTest, WithinBudgetNothingIsRunAgain) {
  Store store(keeping());
  const at::Tensor x = square(1), b = square(3);
  (void)grads(under(&store, [&] { return (gelu_of(x) * b).sum(); }), {x, b});
  EXPECT_EQ(store.stats().recomputed.tensors, 0);
  EXPECT_EQ(store.stats().recompute_s, 0);
}

TEST_F(RecipeTrustTest, WithoutADiskWhatHasARecipeFits) {
  Store store(keeping(KiB(40)));  // h, b's passes through; y need not
  const at::Tensor x = square(1), b = square(3);
  for (int pass = 0; pass < 3; ++pass)
    (void)grads(under(&store,
                      [&] {
                        const at::Tensor h = x * 2;
                        return (at::gelu(h) * b).sum() + (at::silu(h) * b).sum() + (at::mish(h) * b).sum();
                      }),
                {x, b});
  EXPECT_GE(store.stats().recomputed.tensors, 3) << store.report();
  EXPECT_EQ(store.stats().disk_write.bytes, Bytes(0));
}

}  // namespace
}  // namespace ebbtide::test
