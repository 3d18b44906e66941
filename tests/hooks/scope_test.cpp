#include <ebbtide/hooks/offload_scope.h>
#include <ebbtide/hooks/scope.h>
#include <ebbtide/store/store.h>

#include <ATen/SavedTensorHooks.h>
#include <gmock/gmock.h>
#include <tests/hooks/support.h>

#include <dlfcn.h>

#include <memory>
#include <optional>
#include <thread>
#include <vector>

namespace ebbtide::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Property;
using testing::ThrowsMessage;

int64_t packed(const Store& store) {
  return store.stats().packed.tensors;
}

/// Whether what autograd saves on this thread now goes to `store`.
bool serves(const Store& store) {
  const int64_t before = packed(store);
  chain(leaf());
  return packed(store) > before;
}

TEST(ScopeTest, HooksComeWithoutPython) {
  ASSERT_EQ(::dlsym(RTLD_DEFAULT, "Py_IsInitialized"), nullptr) << "this is a program without Python";
  Store store(keeping());
  const at::Tensor x = leaf();
  const at::Tensor reference = gradient_of(chain(x), x);  // an engine that has run already is wrapped all the same
  at::Tensor y;
  {
    OffloadScope scope(store);
    y = chain(x);
  }
  EXPECT_GT(store.stats().saved.tensors, 0);
  EXPECT_TRUE(same_bits(gradient_of(y, x), reference));
  expect_all_is_over(store);
}

TEST(ScopeTest, WithoutAScopeTorchIsAsEver) {
  Store store(keeping());
  EXPECT_FALSE(serves(store));
  {
    OffloadScope scope(store);
    EXPECT_TRUE(serves(store));
  }
  EXPECT_FALSE(serves(store));
  const at::Tensor x = leaf();
  EXPECT_TRUE(same_bits(gradient_of(chain(x), x), gradient_of(chain(x), x)));
  EXPECT_EQ(Scope::current(), nullptr);
}

TEST(ScopeTest, TheInnermostOfTwoStoresGetsThePacks) {
  Store outer(keeping()), inner(keeping());
  OffloadScope outer_scope(outer);
  EXPECT_TRUE(serves(outer));
  {
    OffloadScope inner_scope(inner);
    const int64_t before = packed(outer);
    EXPECT_TRUE(serves(inner));
    EXPECT_EQ(packed(outer), before);
  }
  const int64_t before = packed(inner);
  EXPECT_TRUE(serves(outer));
  EXPECT_EQ(packed(inner), before);
}

TEST(ScopeTest, ScopesOfTwoStoresAreLeftInAnyOrder) {
  Store first(keeping()), second(keeping()), third(keeping());
  std::optional<OffloadScope> a(first), b(second), c(third);
  a.reset();
  EXPECT_TRUE(serves(third));
  c.reset();
  EXPECT_TRUE(serves(second));
  EXPECT_FALSE(serves(first));
  b.reset();
  EXPECT_EQ(Scope::current(), nullptr);
  EXPECT_FALSE(serves(first) || serves(second) || serves(third));
}

TEST(ScopeTest, NestedScopesOfOneStoreAreOnePass) {
  Store store(keeping());
  at::Tensor first, second, third;
  {
    OffloadScope outer(store);
    first = chain(leaf(1));
    {
      OffloadScope inner(store);
      second = chain(leaf(2));
    }
    third = chain(leaf(3));
  }
  EXPECT_EQ(store.stats().passes, 0);
  first.reset();
  second.reset();
  third.reset();
  EXPECT_EQ(store.stats().passes, 1);
  EXPECT_EQ(store.last_pass().number, 1);
  expect_all_is_over(store);
}

TEST(ScopeTest, NestedScopesOfOneStoreAreOnePassInWhateverOrderTheyAreLeft) {
  Store store(keeping()), other(keeping());
  std::optional<OffloadScope> a(store), between(other), b(store), c(store);
  at::Tensor first = chain(leaf(1));
  a.reset();  // the outermost, which holds the pass
  at::Tensor second = chain(leaf(2));
  c.reset();
  at::Tensor third = chain(leaf(3));
  b.reset();
  EXPECT_TRUE(serves(other));
  between.reset();
  EXPECT_EQ(Scope::current(), nullptr);
  EXPECT_EQ(store.stats().passes, 0);
  first.reset();
  second.reset();
  third.reset();
  EXPECT_EQ(store.stats().passes, 1);
  expect_all_is_over(store);
}

TEST(ScopeTest, AnotherThreadIsNotInIt) {
  Store store(keeping());
  OffloadScope scope(store);
  std::thread([&] { EXPECT_FALSE(serves(store)); }).join();
  EXPECT_TRUE(serves(store));
}

TEST(ScopeTest, OfAClosedStoreThereIsNone) {
  Store open(keeping()), closed(keeping());
  closed.close();
  OffloadScope scope(open);
  EXPECT_THAT([&] { OffloadScope refused(closed); },
              testing::Throws<Error>(Property(&Error::code, ErrorCode::kClosed)));
  EXPECT_TRUE(serves(open)) << "the scope around the refused one is in force";
}

TEST(ScopeTest, WhatIsPackedAfterACloseInsidePassesThrough) {
  const Folder folder;
  Store store(spilling(folder));
  const at::Tensor x = leaf();
  const at::Tensor reference = gradient_of(chain(x), x);
  OffloadScope scope(store);
  const at::Tensor before = chain(x);
  store.close();
  const int64_t packed_then = packed(store);
  const at::Tensor after = chain(x);
  EXPECT_EQ(packed(store), packed_then);
  EXPECT_TRUE(same_bits(gradient_of(before, x), reference));
  EXPECT_TRUE(same_bits(gradient_of(after, x), reference));
}

TEST(ScopeTest, OutlivesItsStore) {
  const Folder folder;
  std::optional<Store> store(spilling(folder));
  const at::Tensor x = leaf();
  const at::Tensor reference = gradient_of(chain(x), x);
  OffloadScope scope(*store);
  const at::Tensor before = chain(x);
  store.reset();
  const at::Tensor after = chain(x);
  EXPECT_TRUE(same_bits(gradient_of(before, x), reference));
  EXPECT_TRUE(same_bits(gradient_of(after, x), reference));
}

TEST(ScopeTest, LeavingTwiceIsLeavingOnce) {
  Store store(keeping());
  {
    OffloadScope outer(store);
    {
      OffloadScope inner(store);
      inner.leave();
      inner.leave();
      EXPECT_TRUE(serves(store)) << "of the outer scope";
    }
    EXPECT_TRUE(serves(store));
  }
  EXPECT_FALSE(serves(store));
}

TEST(ScopeTest, TheBackwardMayRunInsideOrAfter) {
  const Folder folder;
  Store store(spilling(folder));
  const at::Tensor x = leaf();
  const at::Tensor reference = gradient_of(chain(x), x);
  at::Tensor after;
  {
    OffloadScope scope(store);
    EXPECT_TRUE(same_bits(gradient_of(chain(x), x), reference));
    EXPECT_EQ(store.stats().passes, 1) << "the end of a backward ends the pass";
    EXPECT_TRUE(same_bits(gradient_of(chain(x), x), reference));
    after = chain(x);
  }
  EXPECT_EQ(store.stats().passes, 2);
  EXPECT_TRUE(same_bits(gradient_of(after, x), reference));
  EXPECT_EQ(store.stats().passes, 3);
  expect_all_is_over(store);
}

TEST(ScopeTest, HooksThatTorchDisabledPassThroughWithTheirReason) {
  Store store(keeping());
  at::SavedTensorDefaultHooks::disable("not here");
  {
    OffloadScope scope(store);
    chain(leaf());
  }
  at::SavedTensorDefaultHooks::enable();
  EXPECT_EQ(store.stats().saved.tensors, 0);
  EXPECT_EQ(store.stats().passed_through_reasons.count("saved-tensor hooks disabled by torch"), 1u);
}

TEST(ScopeTest, AForwardThatFitsNowhereRaisesOutOfBudget) {
  Store store(keeping(Bytes(0)));
  const at::Tensor x = leaf();
  const at::Tensor reference = gradient_of(chain(x), x);
  {
    OffloadScope scope(store);
    EXPECT_THAT(
        [&] {
          at::Tensor hidden = x * 2;
          for (int i = 0; i < 3; ++i) hidden = hidden.sin();  // saves what the assignment then lets go
        },
        ThrowsMessage<OutOfBudget>(AllOf(HasSubstr("device_budget"), HasSubstr("spill_to"))));
  }
  expect_all_is_over(store);
  EXPECT_TRUE(same_bits(gradient_of(chain(x), x), reference)) << "the engine is as it was";
}

TEST(ScopeTest, LeavingRaisesWhereWhatWasSavedLastFitsNowhere) {
  Store store(keeping(Bytes(0)));
  const at::Tensor x = leaf();
  at::Tensor y;
  {
    OffloadScope scope(store);
    y = x.exp().sum();  // no pack follows that of exp's result
    EXPECT_THROW(scope.leave(), OutOfBudget);
    EXPECT_FALSE(serves(store)) << "the scope is over all the same";
  }
  EXPECT_TRUE(same_bits(gradient_of(y, x), gradient_of(x.exp().sum(), x)));
  y.reset();
  {
    OffloadScope scope(store);
    y = x.exp().sum();
  }  // in silence
  EXPECT_TRUE(same_bits(gradient_of(y, x), gradient_of(x.exp().sum(), x)));
  expect_all_is_over(store);
}

TEST(ScopeTest, WithOnFullKeepItIsKeptAndSaidOnce) {
  Options options = keeping(Bytes(0));
  options.on_full = OnFull::kKeep;
  Store store(options);
  std::vector<std::string> warnings;
  store.on_warning([&](const std::string& text) { warnings.push_back(text); });
  const at::Tensor x = leaf();
  const at::Tensor reference = gradient_of(chain(x), x);
  for (int i = 0; i < 3; ++i) {
    at::Tensor y;
    {
      OffloadScope scope(store);
      y = chain(x);
    }
    EXPECT_TRUE(same_bits(gradient_of(y, x), reference));
  }
  EXPECT_THAT(warnings, testing::ElementsAre(HasSubstr("device_budget")));
  expect_all_is_over(store);
}

TEST(ScopeTest, ThreadsHaveTheirOwnScopesOnOneStore) {
  const Folder folder;
  Store store(spilling(folder, KiB(64)));
  constexpr int kThreads = 3, kPasses = 20;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&store, t] {
      const at::Tensor x = leaf(t);
      const at::Tensor reference = gradient_of(chain(x), x);
      for (int i = 0; i < kPasses; ++i) {
        at::Tensor y;
        {
          OffloadScope scope(store);
          y = chain(x);
        }
        EXPECT_TRUE(same_bits(gradient_of(y, x), reference));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store.stats().passes, kThreads * kPasses);
  expect_all_is_over(store);
}

}  // namespace
}  // namespace ebbtide::test
