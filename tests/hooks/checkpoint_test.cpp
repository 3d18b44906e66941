// Regions: what is saved in them comes back to the last bit, wherever it was meanwhile.
#include <ebbtide/ebbtide.h>
#include <ebbtide/hooks/redo_environment.h>
#include <ebbtide/store/saved_profile.h>
#include <ebbtide/store/store_core.h>

#include <ATen/ThreadLocalState.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/rrelu.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <gmock/gmock.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/generated/Functions.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "autocast.h"
#include "models.h"
#include "support.h"

namespace ebbtide::test {
namespace {

using testing::HasSubstr;

enum class Under { kNothing, kAllKept, kBudgetOfNone, kSpilled, kSmallBudget };

std::string name_of(Under under) {
  static const char* const kNames[] = {"nothing", "all_kept", "budget_of_none", "spilled", "small_budget"};
  return kNames[static_cast<size_t>(under)];
}

/// Runs `step` under a store or none; with a store, all must be over at the end.
class UnderTest : public testing::TestWithParam<Under> {
 protected:
  at::Tensor forward(const std::function<at::Tensor()>& function) {
    if (!store_) return function();
    OffloadScope scope(*store_);
    at::Tensor y = function();
    scope.leave();
    return y;
  }
  void SetUp() override {
    Options options;
    switch (GetParam()) {
      case Under::kNothing:
        return;
      case Under::kAllKept:
        options = keeping();
        break;
      case Under::kBudgetOfNone:  // of the inputs, which have nowhere to go, no more is asked than to be kept
        options = keeping(Bytes(0));
        options.on_full = OnFull::kKeep;
        break;
      case Under::kSpilled:
        options = spilling(folder_);
        break;
      case Under::kSmallBudget:
        options = spilling(folder_, KiB(64));
        break;
    }
    store_.emplace(options);
    store_->core()->set_warning_handler([](const std::string&) {});
    store_->core()->follow_plans(false);
  }
  void TearDown() override {
    if (store_) expect_all_is_over(*store_);
  }

  Folder folder_;
  std::optional<Store> store_;
};

INSTANTIATE_TEST_SUITE_P(All, UnderTest,
                         testing::Values(Under::kNothing, Under::kAllKept, Under::kBudgetOfNone, Under::kSpilled,
                                         Under::kSmallBudget),
                         [](const auto& info) { return name_of(info.param); });

at::Tensor inner(const at::Tensor& x) {
  return (x.sin().exp() * x.cos()).tanh() * x.sigmoid();
}

TEST_P(UnderTest, GradientsAreThoseWithoutRegions) {
  const at::Tensor x = leaf();
  const at::Tensor expected = gradient_of(inner(inner(x * 2)).sum(), x);
  const at::Tensor y = forward([&] { return checkpoint(inner, checkpoint(inner, x * 2)).sum(); });
  EXPECT_TRUE(same_bits(gradient_of(y, x), expected));
}

TEST_P(UnderTest, ArgumentsOfEveryKind) {
  const at::Tensor a = leaf(1), b = leaf(2), c = leaf(3);
  const auto function = [](const at::Tensor& first, const std::vector<at::Tensor>& more,
                           std::optional<at::Tensor> maybe, double scale, const std::string& how,
                           std::tuple<int, at::Tensor> pair) {
    at::Tensor y = first.sin() * more.at(0).exp() * scale;
    if (maybe && maybe->defined()) y = y + maybe->cos();
    if (how == "square") y = y * y;
    return std::make_pair(y, (y * std::get<1>(pair)).tanh() * std::get<0>(pair));
  };
  const auto both = [](const std::pair<at::Tensor, at::Tensor>& results) {
    return (results.first.cos() + results.second.sin()).sum();
  };
  const auto plain = both(function(a, {b}, c, 0.5, "square", {3, b}));
  const auto expected = torch::autograd::grad({plain}, {a, b, c});
  const at::Tensor y = forward([&] {
    return both(checkpoint(function, a * 1, std::vector<at::Tensor>{b * 1}, std::optional<at::Tensor>(c * 1), 0.5,
                           std::string("square"), std::tuple<int, at::Tensor>(3, b)));
  });
  const auto grads = torch::autograd::grad({y}, {a, b, c});
  EXPECT_TRUE(same_bits(grads, expected));
}

TEST_P(UnderTest, AnArgumentThatIsGivenSeveralTimesIsOneTensor) {
  const at::Tensor x = leaf();
  const auto function = [](const at::Tensor& a, const at::Tensor& b, const std::vector<at::Tensor>& more) {
    return (a.is_same(b) && a.is_same(more.at(1)) ? a * a * b : a * b * b * 1.5).cos() * a.sin();
  };
  const auto run = [&](const auto& call) {
    const at::Tensor h = x * 1, other = x * 2;
    return call(h, h, std::vector<at::Tensor>{other, h, other}).sum();
  };
  const at::Tensor expected = gradient_of(run(function), x);
  const at::Tensor y =
      forward([&] { return run([&](const auto&... inputs) { return checkpoint(function, inputs...); }); });
  EXPECT_TRUE(same_bits(gradient_of(y, x), expected));
}

TEST_P(UnderTest, UndefinedInputsAndNoInputs) {
  const at::Tensor x = leaf();
  const auto function = [x](const at::Tensor& none) { return none.defined() ? none : x.sin().exp().tanh(); };
  const at::Tensor expected = gradient_of(function({}).sum(), x);
  const at::Tensor y = forward([&] { return checkpoint(function, at::Tensor()).sum(); });
  EXPECT_TRUE(same_bits(gradient_of(y, x), expected));
  const at::Tensor z = forward([&] { return checkpoint([x] { return x.sin().exp().tanh(); }).sum(); });
  EXPECT_TRUE(same_bits(gradient_of(z, x), expected));
}

TEST_P(UnderTest, Nested) {
  const at::Tensor x = leaf();
  const auto outer = [](const at::Tensor& h, bool inside) {
    const at::Tensor a = h.exp().sin();
    const at::Tensor b = inside ? checkpoint(inner, a) : inner(a);
    const at::Tensor c =
        inside ? checkpoint([](const at::Tensor& t) { return checkpoint(inner, t.cos()) * t; }, b) : inner(b.cos()) * b;
    return c.tanh() * h;
  };
  const at::Tensor expected = gradient_of(outer(x * 2, false).sum(), x);
  const at::Tensor y = forward([&] { return checkpoint(outer, x * 2, true).sum(); });
  EXPECT_TRUE(same_bits(gradient_of(y, x), expected));
}

TEST_P(UnderTest, RandomNumbersAreThoseOfTheFirstRun) {
  const at::Tensor x = leaf();
  const auto noisy = [](const at::Tensor& h) {
    return (at::dropout(h.sin(), 0.5, true).exp() * at::randn(h.sizes())).tanh();
  };
  torch::manual_seed(3);
  const at::Tensor plain = noisy(noisy(x * 2)).sum();
  const at::Tensor expected = gradient_of(plain, x);
  const at::Tensor next = at::randn({4});
  torch::manual_seed(3);
  const at::Tensor y = forward([&] { return checkpoint(noisy, checkpoint(noisy, x * 2)).sum(); });
  EXPECT_TRUE(same_bits(gradient_of(y, x), expected));
  EXPECT_TRUE(same_bits(at::randn({4}), next)) << "the backward moved the generator";
}

TEST_P(UnderTest, AnOpThatSavesWhatItIsAboutToFillIsNotCutOff) {
  const at::Tensor x = leaf();
  const auto noisy = [](const at::Tensor& h) { return at::rrelu(h.sin(), 0.1, 0.9, /*training=*/true); };
  torch::manual_seed(5);
  const at::Tensor expected = gradient_of(noisy(x * 2).sum(), x);
  torch::manual_seed(5);
  const at::Tensor y = forward([&] { return checkpoint(noisy, x * 2).sum(); });
  EXPECT_TRUE(same_bits(gradient_of(y, x), expected));
}

TEST_P(UnderTest, SeveralBackwards) {
  const at::Tensor x = leaf();
  const auto expected = gradient_of(inner(x * 2).sum(), x);
  const at::Tensor y = forward([&] { return checkpoint(inner, x * 2).sum(); });
  EXPECT_TRUE(same_bits(gradient_of(y, x, /*retain_graph=*/true), expected));
  EXPECT_TRUE(same_bits(gradient_of(y, x, /*retain_graph=*/true), expected));
  EXPECT_TRUE(same_bits(gradient_of(y, x), expected));
}

TEST_P(UnderTest, DoubleBackward) {
  const at::Tensor x = leaf();
  const auto twice = [&](const at::Tensor& y) {
    const at::Tensor first = gradient_of(y, x, true, /*create_graph=*/true);
    return gradient_of((first * first).sum(), x);
  };
  const at::Tensor expected = twice(inner(x * 2).sum());
  const at::Tensor y = forward([&] { return checkpoint(inner, x * 2).sum(); });
  EXPECT_TRUE(same_bits(twice(y), expected));
}

TEST_P(UnderTest, PartialBackwardThenTheRest) {
  const at::Tensor x = leaf(), w = leaf(4);
  const auto function = [](const at::Tensor& a, const at::Tensor& b) { return a.sin() * b.exp().tanh(); };
  const auto of = [&](const at::Tensor& y) {
    const at::Tensor first = torch::autograd::grad({y}, {w}, {}, /*retain_graph=*/true).front();
    return std::vector<at::Tensor>{first, gradient_of(y, x)};
  };
  const auto expected = of(function(x * 2, w * 3).sum());
  const at::Tensor y = forward([&] { return checkpoint(function, x * 2, w * 3).sum(); });
  EXPECT_TRUE(same_bits(of(y), expected));
}

TEST_P(UnderTest, ABackwardInsideTheFunction) {
  const at::Tensor x = leaf();
  const auto function = [](const at::Tensor& h) {
    const at::Tensor y = (h.sin().exp() * h).sum();
    return gradient_of(y, h, true, true) * h.cos();
  };
  const at::Tensor expected = gradient_of(function(x * 2).sum(), x);
  const at::Tensor y = forward([&] { return checkpoint(function, x * 2).sum(); });
  EXPECT_TRUE(same_bits(gradient_of(y, x), expected));
}

TEST_P(UnderTest, InPlaceOpsAndViewsInside) {
  const at::Tensor x = leaf(0, 64 * 128);
  const auto function = [](const at::Tensor& h) {
    const at::Tensor m = h.view({64, 128});
    const at::Tensor a = (m * 3).relu_();
    const at::Tensor b = a.t().matmul(m.narrow(1, 0, 64)).exp();
    return (b.slice(0, 0, 64) * a.slice(1, 64, 128)).sigmoid_();
  };
  const at::Tensor expected = gradient_of(function(x * 0.01).sum(), x);
  const at::Tensor y = forward([&] { return checkpoint(function, x * 0.01).sum(); });
  EXPECT_TRUE(same_bits(gradient_of(y, x), expected));
}

TEST_P(UnderTest, OneTensorThatManyNodesSave) {
  const at::Tensor x = leaf(0, 64 * 64);
  const at::Tensor p = leaf(1, 64 * 64), q = leaf(2, 64 * 64), r = leaf(3, 64 * 64);
  int runs = 0;
  const auto function = [&runs, p, q, r](const at::Tensor& h) {
    ++runs;
    const at::Tensor a = h.sin().view({64, 64});
    return a.matmul(p.view({64, 64})) * a.matmul(q.view({64, 64})) + a.matmul(r.view({64, 64}));
  };
  const auto expected = torch::autograd::grad({function(x * 0.1).sum()}, {x, p, q, r});
  runs = 0;
  const at::Tensor y = forward([&] { return checkpoint(function, x * 0.1).sum(); });
  EXPECT_TRUE(same_bits(torch::autograd::grad({y}, {x, p, q, r}), expected));
  EXPECT_LE(runs, 2) << "once again at most";
}

TEST_P(UnderTest, ModelsOfEveryKind) {
  for (const std::string name : {"mlp", "conv", "lstm", "transformer", "custom_function"}) {
    SCOPED_TRACE(name);
    const auto gradients = [&](bool in_region) {
      const Subject subject = build(name);
      torch::manual_seed(7);
      const at::Tensor input = subject.input * 1;
      const at::Tensor y = forward(
          [&] { return (in_region ? checkpoint(subject.forward, input) : subject.forward(input)).pow(2).mean(); });
      y.backward();
      std::vector<at::Tensor> all;
      for (const at::Tensor& parameter : subject.module->parameters()) all.push_back(parameter.grad().clone());
      return all;
    };
    EXPECT_TRUE(same_bits(gradients(true), gradients(false)));
  }
}

TEST_P(UnderTest, Autocast) {
  const at::Tensor x = leaf(0, 64 * 64), w = leaf(1, 64 * 64);
  const auto function = [w](const at::Tensor& h) {
    const at::Tensor m = h.view({64, 64}).matmul(w.view({64, 64})).exp();
    return m.matmul(w.view({64, 64}).t()).sin();
  };
  const auto run = [&](bool in_region) {
    at::Tensor y;
    {
      const Autocast autocast;
      y = forward([&] { return (in_region ? checkpoint(function, x * 0.01) : function(x * 0.01)).sum(); });
    }
    return torch::autograd::grad({y}, {x, w});
  };
  const auto expected = run(false);
  EXPECT_TRUE(same_bits(run(true), expected));
  EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
}

TEST_P(UnderTest, AnExceptionInTheFirstRunLeavesNothing) {
  const at::Tensor x = leaf();
  const auto throws = [](const at::Tensor& h) -> at::Tensor {
    const at::Tensor y = h.sin().exp();
    throw std::runtime_error("no more");
  };
  EXPECT_THROW(forward([&] { return checkpoint(throws, x * 2); }), std::runtime_error);
  const at::Tensor y = forward([&] { return chain(x * 2); });  // hooks are the scope's again
  EXPECT_TRUE(same_bits(gradient_of(y, x), gradient_of(chain(x * 2), x)));
}

TEST_P(UnderTest, TwoThreadsGoBackAtOnce) {
  const at::Tensor x = leaf();
  const at::Tensor expected = gradient_of(inner(x * 2).sum(), x);
  const at::Tensor y = forward([&] { return checkpoint(inner, x * 2).sum(); });
  std::vector<at::Tensor> results(2);
  std::vector<std::thread> threads;
  for (at::Tensor& result : results)
    threads.emplace_back([&result, &y, &x] { result = gradient_of(y, x, /*retain_graph=*/true); });
  for (std::thread& thread : threads) thread.join();
  for (const at::Tensor& result : results) EXPECT_TRUE(same_bits(result, expected));
}

TEST_P(UnderTest, NoGradientsNoRegion) {
  const at::Tensor x = leaf();
  const at::NoGradGuard no_grad;
  int runs = 0;
  const at::Tensor y = forward([&] { return checkpoint([&](const at::Tensor& h) { return ++runs, inner(h); }, x); });
  EXPECT_EQ(runs, 1);
  EXPECT_FALSE(y.requires_grad());
}

// Without a store: what torch.utils.checkpoint does, in its words.

TEST(CheckpointTest, TheFunctionRunsAgainOnceAndOnlyAsFarAsIsNeeded) {
  const at::Tensor x = leaf();
  int began = 0, ended = 0;
  const at::Tensor y = checkpoint(
                           [&](const at::Tensor& h) {
                             ++began;
                             const at::Tensor z = h.sin().exp().cos();
                             ++ended;
                             return z;
                           },
                           x * 2)
                           .sum();
  EXPECT_TRUE(same_bits(gradient_of(y, x), gradient_of((x * 2).sin().exp().cos().sum(), x)));
  EXPECT_EQ(began, 2);
  EXPECT_EQ(ended, 1) << "the second run was to stop where nothing more is needed";
}

TEST(CheckpointTest, WhatIsInsideIsNotKept) {
  const at::Tensor x = leaf();
  c10::weak_intrusive_ptr<c10::StorageImpl> inside(c10::intrusive_ptr<c10::StorageImpl>{});
  const at::Tensor y = checkpoint(
      [&](const at::Tensor& h) {
        const at::Tensor a = h.exp();
        inside = a.storage().getWeakStorageImpl();
        return a.sin();
      },
      x * 2);
  EXPECT_TRUE(inside.expired());
}

TEST(CheckpointTest, FewerTensorsTheSecondTime) {
  const at::Tensor x = leaf();
  int runs = 0;
  const at::Tensor y =
      checkpoint([&](const at::Tensor& h) { return runs++ == 0 ? h.sin().exp() : h * 1; }, x * 2).sum();
  EXPECT_THAT([&] { gradient_of(y, x); },
              testing::ThrowsMessage<CheckpointError>(HasSubstr(
                  "A different number of tensors was saved during the original forward and recomputation.\nNumber of "
                  "tensors saved during forward: 2\nNumber of tensors saved during recomputation: 0.")));
}

TEST(CheckpointTest, OtherTensorsTheSecondTime) {
  const at::Tensor x = leaf();
  int runs = 0;
  const auto changing = [&](const at::Tensor& h) { return (runs++ == 0 ? h : h.view({2, -1})).sin().exp(); };
  const at::Tensor y = checkpoint(changing, x * 2).sum();
  EXPECT_THAT([&] { gradient_of(y, x); },
              testing::ThrowsMessage<CheckpointError>(testing::AllOf(
                  HasSubstr("Recomputed values for the following tensors have different metadata than during the "
                            "forward pass.\ntensor at position 0:\nsaved metadata: {shape: [4096]"),
                  HasSubstr("recomputed metadata: {shape: [2, 2048], dtype: Float, device: cpu}"))));
}

TEST(CheckpointTest, WrittenToAfterwards) {
  const at::Tensor x = leaf();
  at::Tensor inside;
  const at::Tensor y = checkpoint([&](const at::Tensor& h) { return (inside = h.exp()).sin(); }, x * 2).sum();
  {
    const at::NoGradGuard no_grad;
    inside.mul_(2);
  }
  EXPECT_THAT([&] { gradient_of(y, x); }, testing::ThrowsMessage<c10::Error>(
                                              HasSubstr("has been modified by an inplace operation: [CPUFloatType")));
  at::Tensor input = x * 2;
  const at::Tensor z = checkpoint(inner, input).sum();
  {
    const at::NoGradGuard no_grad;
    input.mul_(2);
  }
  EXPECT_THAT([&] { gradient_of(z, x); },
              testing::ThrowsMessage<c10::Error>(HasSubstr("has been modified by an inplace operation")));
}

TEST(CheckpointTest, AnExceptionInTheSecondRun) {
  const at::Tensor x = leaf();
  int runs = 0;
  const at::Tensor y = checkpoint(
                           [&](const at::Tensor& h) {
                             const at::Tensor a = h.sin();
                             if (++runs == 2) throw std::runtime_error("not twice");
                             return a.exp();
                           },
                           x * 2)
                           .sum();
  EXPECT_THAT([&] { gradient_of(y, x, true); }, testing::ThrowsMessage<std::runtime_error>(HasSubstr("not twice")));
  EXPECT_TRUE(same_bits(gradient_of(y, x), gradient_of((x * 2).sin().exp().sum(), x))) << "it can be tried again";
}

// With a store.

TEST(CheckpointTest, WithinTheBudgetNothingRunsAgain) {
  Store store(keeping());
  const at::Tensor x = leaf();
  int runs = 0;
  at::Tensor y;
  {
    OffloadScope scope(store);
    y = checkpoint([&](const at::Tensor& h) { return ++runs, inner(h); }, x * 2).sum();
  }
  y.backward();
  y.reset();
  EXPECT_EQ(runs, 1);
  EXPECT_EQ(store.stats().recomputed.tensors, 0);
  expect_all_is_over(store);
}

TEST(CheckpointTest, OverTheBudgetEachRegionRunsAgainOnce) {
  Folder folder;
  Options options = spilling(folder);
  Store store(options);
  store.core()->follow_plans(false);
  const at::Tensor x = leaf();
  int runs = 0;
  const auto function = [&](const at::Tensor& h) { return ++runs, inner(h); };
  at::Tensor y;
  {
    OffloadScope scope(store);
    Region region("middle");
    at::Tensor h = x * 2;
    for (int i = 0; i < 4; ++i) h = checkpoint(function, h);
    y = h.sum();
  }
  y.backward();
  y.reset();
  EXPECT_EQ(runs, 8);
  expect_all_is_over(store);
  const Stats stats = store.stats();
  EXPECT_GT(stats.recomputed.tensors, 4 * 3);
  ASSERT_TRUE(stats.recomputed_ops.contains("region middle"));
  EXPECT_EQ(stats.recomputed_ops.at("region middle").tensors, stats.recomputed.tensors);
  EXPECT_GT(stats.spilled.tensors, 0) << "what a region reads moves";
  EXPECT_LE(stats.spilled.tensors, 4);
  EXPECT_GT(stats.recompute_s, 0);
  EXPECT_EQ(stats.regions.at("middle").recomputed.bytes, stats.recomputed.bytes);
  EXPECT_THAT(store.report(), HasSubstr("region middle"));
}

TEST(CheckpointTest, WithoutRecomputeAllOfItMoves) {
  Folder folder;
  Options options = spilling(folder);
  options.recompute = false;
  Store store(options);
  const at::Tensor x = leaf();
  int runs = 0;
  at::Tensor y;
  {
    OffloadScope scope(store);
    y = checkpoint([&](const at::Tensor& h) { return ++runs, inner(h); }, x * 2).sum();
  }
  EXPECT_TRUE(same_bits(gradient_of(y, x), gradient_of(inner(x * 2).sum(), x)));
  EXPECT_EQ(runs, 1);
  y.reset();
  expect_all_is_over(store);
}

TEST(CheckpointTest, ARegionThatRanACollectiveIsNotRunAgain) {
  Folder folder;
  Store store(spilling(folder));
  store.core()->follow_plans(false);
  const at::Tensor x = leaf();
  int again = 0;
  at::Tensor y;
  {
    OffloadScope scope(store);
    const at::Tensor h = x * 2;
    CheckpointedRun run(
        {h}, [&](const std::vector<at::Tensor>& inputs) { ++again, inner(inputs[0]); },
        CheckpointedRun::Collectives::kPossible);
    y = inner(h).sum();
    run.finish(/*ran_collective=*/true);
  }
  EXPECT_TRUE(same_bits(gradient_of(y, x), gradient_of(inner(x * 2).sum(), x)));
  EXPECT_EQ(again, 0);
  y.reset();
  expect_all_is_over(store);
  EXPECT_EQ(store.stats().recomputed.tensors, 0);
}

/// Of a group of which nobody else is there.
class LonelyBackend : public c10d::Backend {
 public:
  LonelyBackend() : Backend(0, 2) {}
  const std::string getBackendName() const override { return "lonely"; }
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>&, const c10d::AllreduceOptions&) override {
    return c10::make_intrusive<Done>();
  }

 private:
  struct Done : c10d::Work {
    bool wait(std::chrono::milliseconds) override { return true; }
  };
};

/// A region's function is watched: what it asks for as `ask` does is a collective to it, or not.
int64_t runs_with(const std::function<void()>& ask) {
  Folder folder;
  Store store(spilling(folder));
  store.core()->follow_plans(false);
  const at::Tensor x = leaf();
  int64_t runs = 0;
  const auto asking = [&](const at::Tensor& h) {
    ++runs;
    ask();
    return inner(h);
  };
  at::Tensor y;
  {
    OffloadScope scope(store);
    y = checkpoint([&](const at::Tensor& h) { return checkpoint(asking, h).exp(); }, x * 2).sum();
  }
  EXPECT_TRUE(same_bits(gradient_of(y, x), gradient_of(inner(x * 2).exp().sum(), x)));
  return runs;
}

TEST(CheckpointTest, ACollectiveInsideIsSeen) {
  const at::Tensor value = at::ones({4});
  const auto group = c10::make_intrusive<c10d::ProcessGroup>(c10::make_intrusive<c10d::HashStore>(), 0, 2);
  group->setBackend(c10::kCPU, c10d::ProcessGroup::BackendType::CUSTOM, c10::make_intrusive<LonelyBackend>());
  std::vector<at::Tensor> values{value};
  EXPECT_GT(runs_with([] {}), 1);
  // The first that the process runs: what was let go of before it may be made again, but not it.
  EXPECT_EQ(runs_with([&] { (void)group->allreduce(values); }), 1);
  EXPECT_EQ(runs_with([&] { RECORD_USER_SCOPE("gloo:all_reduce"); }), 1) << "a backend that is used by itself";
  EXPECT_EQ(runs_with([&] {
              std::thread([&, carried = at::ThreadLocalState()] {
                const at::ThreadLocalStateGuard guard(carried);
                (void)group->allreduce(values);
              }).join();
            }),
            1)
      << "in a node of a backward, which runs on a thread of the engine's";
  EXPECT_GT(runs_with([] { RECORD_USER_SCOPE("mine"); }), 1);
}

/// Saves what it made last, so that this is where a second run would be broken off.
struct SavesItsResult : torch::autograd::Function<SavesItsResult> {
  static inline std::vector<c10::weak_intrusive_ptr<c10::TensorImpl>> made;

  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x) {
    at::Tensor y = at::exp(x);
    made.emplace_back(y.getIntrusivePtr());
    context->save_for_backward({y});
    return y;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    return {gradients[0] * context->get_saved_variables()[0]};
  }
};

TEST(CheckpointTest, WhatACustomFunctionMadeAndSavedInASecondRunDies) {
  {
    const at::Tensor x = leaf();
    const at::Tensor y = checkpoint([](const at::Tensor& h) { return SavesItsResult::apply(h); }, x * 2).sum();
    EXPECT_TRUE(same_bits(gradient_of(y, x), at::exp(x.detach() * 2) * 2));
  }
  ASSERT_EQ(SavesItsResult::made.size(), 2u);
  for (const auto& result : SavesItsResult::made) EXPECT_TRUE(result.expired());
}

/// A recipe runs without autograd. What it reads may be a region's, which must not.
TEST(CheckpointTest, ARegionThatIsRunAgainForARecipeRunsWithAutograd) {
  const at::Tensor x = leaf();
  const at::Tensor y = checkpoint([](const at::Tensor& h) { return at::tanh(at::exp(at::sin(h))); }, x * 2);
  auto* node = dynamic_cast<torch::autograd::generated::TanhBackward0*>(y.grad_fn().get());
  ASSERT_NE(node, nullptr);
  at::Tensor made;
  {
    const RedoEnvironment of_a_recipe(c10::kCPU);
    made = node->result_.unpack(y.grad_fn());
  }
  EXPECT_TRUE(same_bits(made, y));
}

TEST(CheckpointTest, ItOutlivesStoreAndScope) {
  Folder folder;
  const at::Tensor x = leaf();
  at::Tensor y;
  {
    Store store(spilling(folder));
    OffloadScope scope(store);
    y = checkpoint(inner, checkpoint(inner, x * 2)).sum();
  }
  EXPECT_TRUE(same_bits(gradient_of(y, x), gradient_of(inner(inner(x * 2)).sum(), x)));
}

TEST(CheckpointTest, PlansKeepMoveAndRunAgain) {
  Folder folder;
  Store store(spilling(folder, KiB(96)));
  const at::Tensor x = leaf();
  const auto net = [](at::Tensor h) {
    for (int i = 0; i < 4; ++i) h = checkpoint(inner, h);
    return h.sum();
  };
  const at::Tensor expected = gradient_of(net(x * 2), x);
  for (int step = 0; step < 6; ++step) {
    at::Tensor y;
    {
      OffloadScope scope(store);
      Region region("block");
      y = net(x * 2);
    }
    EXPECT_TRUE(same_bits(gradient_of(y, x), expected)) << "step " << step;
  }
  const auto plan = store.plan();
  ASSERT_FALSE(plan.empty());
  for (const PlannedRecord& record : plan) EXPECT_EQ(record.region, "block");
  const std::string file = folder.path() + "/profile";
  store.save_profile(file);
  const auto saved = read_profile(file);
  ::unlink(file.c_str());
  ASSERT_TRUE(saved.ok());
  std::map<uint32_t, int> made_together;
  for (const ProfiledRecord& record : saved.value().profile.records)
    if (record.recipe) ++made_together[record.recipe->group.value()];
  EXPECT_EQ(made_together.size(), 4u) << "the plan knows which records one run makes";
  for (const auto& [first, records] : made_together) EXPECT_GT(records, 1);
  expect_all_is_over(store);
}

}  // namespace
}  // namespace ebbtide::test
