// What autograd may do with saved tensors, under a store from which everything leaves.
#include <ebbtide/hooks/offload_scope.h>
#include <ebbtide/hooks/saved_tensor.h>
#include <ebbtide/hooks/scope.h>
#include <ebbtide/store/store.h>

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/imag.h>
#include <ATen/ops/real.h>
#include <ATen/ops/rrelu.h>
#include <ATen/ops/view_as_complex.h>
#include <ATen/ops/view_as_real.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <tests/hooks/support.h>
#include <tests/hooks/weak_node.h>
#include <torch/csrc/autograd/anomaly_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace ebbtide::test {

/// Named in an error message, so outside of the anonymous namespace.
struct Doubled : torch::autograd::Function<Doubled> {
  static at::Tensor forward(torch::autograd::AutogradContext* /*context*/, const at::Tensor& x) { return x * 2; }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* /*context*/,
                                                 const torch::autograd::variable_list& gradients) {
    return {gradients[0] * 2};
  }
};

namespace {

using testing::HasSubstr;

class SavedTensorTest : public testing::Test {
 protected:
  void TearDown() override { expect_all_is_over(store_); }

  /// The result of `function` under the store.
  template <class Function, class... Arguments>
  auto forward(Function&& function, Arguments&&... arguments) {
    OffloadScope scope(store_);
    return function(std::forward<Arguments>(arguments)...);
  }

  void expect_gradient_of_plain(const std::function<at::Tensor(const at::Tensor&)>& function, const at::Tensor& x) {
    const at::Tensor reference = gradient_of(function(x), x);
    EXPECT_TRUE(same_bits(gradient_of(forward(function, x), x), reference));
  }

  Folder folder_;
  Store store_{spilling(folder_)};
};

// One hook by itself -------------------------------------------------------------------------------------------------

TEST_F(SavedTensorTest, WhatIsKeptIsTheStorageItself) {
  Store store(keeping());
  Scope scope(store.core());
  const auto saved = SavedTensor::make(scope);
  const at::Tensor x = (leaf() * 2).view({64, 64}).transpose(0, 1);
  saved->call_pack_hook(x);
  const at::Tensor back = saved->call_unpack_hook();
  EXPECT_EQ(back.const_data_ptr(), x.const_data_ptr());
  EXPECT_EQ(back.strides(), x.strides());
  EXPECT_FALSE(back.requires_grad());
}

TEST_F(SavedTensorTest, WhatComesBackHasItsOldAddressModulo64) {
  for (const int64_t skipped : {0, 1, 3, 4, 5, 7, 16, 100, 1030}) {
    SCOPED_TRACE("view from " + std::to_string(skipped));
    at::Tensor x = at::arange(2 * kFloats, at::kFloat).narrow(0, skipped, 2000);
    const at::Tensor reference = x.clone();
    const auto address = reinterpret_cast<uintptr_t>(x.const_data_ptr());
    Scope scope(store_.core());
    const auto saved = SavedTensor::make(scope);
    saved->call_pack_hook(x);
    x.reset();
    scope.leave();
    EXPECT_GT(store_.stats().spill.bytes, Bytes(0)) << "it has not left";
    const at::Tensor back = saved->call_unpack_hook();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(back.const_data_ptr()) % 64, address % 64);
    EXPECT_TRUE(same_bits(back, reference));
  }
}

TEST_F(SavedTensorTest, UnpackedTwiceItIsOneStorage) {
  Scope scope(store_.core());
  const auto saved = SavedTensor::make(scope);
  at::Tensor x = leaf().detach() * 2;
  const at::Tensor reference = x.clone();
  saved->call_pack_hook(x);
  x.reset();
  scope.leave();
  at::Tensor once = saved->call_unpack_hook();
  at::Tensor twice = saved->call_unpack_hook();
  EXPECT_EQ(once.const_data_ptr(), twice.const_data_ptr());
  EXPECT_TRUE(same_bits(once, reference));
  once.zero_();
  EXPECT_THROW(saved->call_unpack_hook(), c10::Error) << "a write to what is handed out is one to the saved tensor";
}

TEST_F(SavedTensorTest, ViewsOfOneVersionAreOneRecord) {
  Scope scope(store_.core());
  std::vector<std::unique_ptr<SavedTensor>> saved;
  at::Tensor x = leaf().detach().view({4, -1}) * 2;
  const at::Tensor reference = x.clone();
  const auto pack = [&](const at::Tensor& tensor) {
    saved.push_back(SavedTensor::make(scope));
    saved.back()->call_pack_hook(tensor);
  };
  pack(x.select(0, 1));
  pack(x.select(0, 3));  // widens the record
  pack(x.transpose(0, 1));
  EXPECT_EQ(store_.stats().saved.tensors, 1);
  EXPECT_EQ(store_.stats().deduplicated.tensors, 2);
  pack(x.variable_data());  // x.data: writes to it are not seen through x
  EXPECT_EQ(store_.stats().saved.tensors, 2);
  x.reset();
  scope.leave();
  EXPECT_TRUE(same_bits(saved[0]->call_unpack_hook(), reference.select(0, 1)));
  EXPECT_TRUE(same_bits(saved[1]->call_unpack_hook(), reference.select(0, 3)));
  EXPECT_TRUE(same_bits(saved[2]->call_unpack_hook(), reference.transpose(0, 1)));
  EXPECT_TRUE(same_bits(saved[3]->call_unpack_hook(), reference));
}

TEST_F(SavedTensorTest, AViewOfAFewBytesOfALargeStorageLeavesToo) {
  std::vector<std::string> warnings;
  store_.on_warning([&](const std::string& text) { warnings.push_back(text); });
  Scope scope(store_.core());
  const auto saved = SavedTensor::make(scope);
  at::Tensor x = leaf().detach() * 2;
  const at::Tensor reference = x.narrow(0, 3, 10).clone();
  saved->call_pack_hook(x.narrow(0, 3, 10));
  x.reset();
  EXPECT_NO_THROW(scope.leave());
  EXPECT_THAT(warnings, testing::IsEmpty());
  EXPECT_EQ(store_.stats().device.bytes, Bytes(0));
  EXPECT_TRUE(same_bits(saved->call_unpack_hook(), reference));
}

TEST_F(SavedTensorTest, AParameterComesBackAsItself) {
  Scope scope(store_.core());
  const auto saved = SavedTensor::make(scope);
  const at::Tensor weight = leaf();
  saved->call_pack_hook(weight);
  EXPECT_TRUE(saved->call_unpack_hook().is_same(weight));
}

TEST_F(SavedTensorTest, AResultThatItsOwnNodeSavedDoesNotKeepTheNodeAlive) {
  for (const int64_t size : {int64_t{8}, kFloats}) {  // passed through, and a record
    at::Tensor y = forward([&] { return leaf(0, size).exp(); });
    const WeakNode node(y.grad_fn());
    y.reset();
    EXPECT_TRUE(node.expired()) << size;
  }
}

// In-place writes ----------------------------------------------------------------------------------------------------

using Broken = std::function<void()>;

void write(const at::Tensor& tensor) {
  const c10::NoGradGuard guard;
  tensor.mul_(2);
}

/// Backwards over tensors that were written to after they were saved.
std::vector<std::pair<std::string, Broken>> broken_backwards() {
  const auto doubled = [] { return leaf() * 2; };
  return {
      {"a result that its own node saved",
       [] {
         const at::Tensor y = leaf().exp();
         const at::Tensor z = y.sum();
         write(y);
         z.backward();
       }},
      {"a result that its consumer saved",
       [=] {
         const at::Tensor y = doubled();
         const at::Tensor z = y.sin().sum();
         write(y);
         z.backward();
       }},
      {"written by an op that autograd records",
       [=] {
         at::Tensor y = doubled();
         const at::Tensor z = y.sin();
         y.add_(1);
         (z + y).sum().backward();
       }},
      {"a parameter",
       [] {
         const at::Tensor weight = leaf();
         const at::Tensor z = (leaf(1) * weight).sum();
         write(weight);
         z.backward();
       }},
      {"an input without a gradient",
       [] {
         const at::Tensor data = leaf().detach() * 2;
         const at::Tensor z = (leaf(1) * data).sum();
         write(data);
         z.backward();
       }},
      {"a small one",
       [] {
         const at::Tensor y = leaf(0, 8).exp();
         const at::Tensor z = y.sum();
         write(y);
         z.backward();
       }},
      {"double precision in two dimensions",
       [] {
         const at::Tensor y = leaf().to(at::kDouble).view({64, 64}).exp();
         const at::Tensor z = y.sum();
         write(y);
         z.backward();
       }},
      {"a base, written through a view",
       [=] {
         const at::Tensor y = doubled();
         const at::Tensor z = y.sin().sum();
         write(y.narrow(0, 3, 5));
         z.backward();
       }},
      {"written twice",
       [=] {
         const at::Tensor y = doubled();
         write(y);
         const at::Tensor z = y.sin().sum();
         write(y);
         write(y);
         z.backward();
       }},
  };
}

/// The error's text and nothing of where it was raised.
std::string error_of(const Broken& broken) {
  try {
    broken();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

class InPlaceTest : public SavedTensorTest {
 protected:
  void expect_error_of_plain(const std::vector<std::pair<std::string, Broken>>& cases) {
    for (const auto& [name, broken] : cases) {
      SCOPED_TRACE(name);
      const std::string plain = error_of(broken);
      EXPECT_THAT(plain, HasSubstr("modified by an inplace operation"));
      EXPECT_EQ(error_of([&, &b = broken] { forward(b); }), plain);
    }
  }
};

TEST_F(InPlaceTest, IsTheErrorOfPlainTorchWordByWord) {
  expect_error_of_plain(broken_backwards());
}

TEST_F(InPlaceTest, IsTheErrorOfPlainTorchInAnomalyMode) {
  const torch::autograd::DetectAnomalyGuard anomaly(/*check_nan=*/false);
  const std::vector<std::pair<std::string, Broken>> cases = broken_backwards();
  expect_error_of_plain({cases[0], cases[1]});
}

TEST_F(InPlaceTest, NamesAViewsProducerAsPlainTorchDoes) {
  expect_error_of_plain({
      {"a view, written through itself",
       [] {
         const at::Tensor y = (leaf() * 2).view({64, 64});
         const at::Tensor z = y.sin().sum();
         write(y);
         z.backward();
       }},
      {"a view, written through its base",
       [] {
         const at::Tensor base = leaf() * 2;
         const at::Tensor y = base.view({64, 64}).transpose(0, 1);
         const at::Tensor z = y.sin().sum();
         write(base);
         z.backward();
       }},
  });
}

TEST_F(InPlaceTest, NamesACustomFunctionAsPlainTorchDoes) {
  expect_error_of_plain({{"a custom function", [] {
                            const at::Tensor y = Doubled::apply(leaf());
                            const at::Tensor z = y.sin().sum();
                            write(y);
                            z.backward();
                          }}});
}

TEST_F(InPlaceTest, NamesOneOfSeveralResultsAsPlainTorchDoes) {
  expect_error_of_plain({{"the second part of a chunk", [] {
                            const std::vector<at::Tensor> parts = (leaf() * 2).unsafe_chunk(2);
                            const at::Tensor z = parts[1].sin().sum();
                            write(parts[1]);
                            z.backward();
                          }}});
}

TEST_F(InPlaceTest, IsAnErrorAlsoWhenTheBytesHaveLeft) {
  const at::Tensor x = leaf();
  at::Tensor handle;  // shares the version counter and not the storage: nothing else can write once the bytes have left
  const at::Tensor y = forward([&] {
    at::Tensor hidden = x.exp();
    handle = hidden.detach();
    handle.unsafeGetTensorImpl()->set_storage_keep_dtype(at::empty({kFloats}, at::kFloat).storage());
    return hidden.sum();
  });
  EXPECT_GT(store_.stats().spill.bytes, Bytes(0));
  write(handle);
  EXPECT_THAT(error_of([&] { gradient_of(y, x); }), HasSubstr("is at version 1; expected version 0 instead"));
}

TEST_F(InPlaceTest, AWriteBeforeItIsSavedIsANewVersion) {
  expect_gradient_of_plain(
      [](const at::Tensor& x) {
        at::Tensor y = x * 2;
        y.mul_(3);  // saves nothing
        return (y.sin() * y.exp()).sum();
      },
      leaf(3));
}

// What autograd does -------------------------------------------------------------------------------------------------

TEST_F(SavedTensorTest, AKeptGraph) {
  const at::Tensor x = leaf();
  const at::Tensor reference = gradient_of(chain(x), x);
  const at::Tensor y = forward(chain, x);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(same_bits(gradient_of(y, x, /*retain_graph=*/true), reference));
  EXPECT_TRUE(same_bits(gradient_of(y, x), reference));
  EXPECT_GT(store_.stats().spilled.tensors, 0);
}

TEST_F(SavedTensorTest, ABackwardOfABackward) {
  const at::Tensor x = leaf();
  const auto twice = [&](const at::Tensor& y) {
    const at::Tensor first = gradient_of(y, x, true, /*create_graph=*/true);
    return gradient_of(first.pow(2).sum(), x);
  };
  const at::Tensor reference = twice(chain(x));
  EXPECT_TRUE(same_bits(forward([&] { return twice(chain(x)); }), reference));
  const int64_t packed_inside = store_.stats().packed.tensors;
  EXPECT_TRUE(same_bits(twice(forward(chain, x)), reference));
  EXPECT_LT(store_.stats().packed.tensors, 2 * packed_inside) << "outside the scope the second graph is torch's";
}

TEST_F(SavedTensorTest, SeveralPassesInFlight) {
  const at::Tensor x = leaf();
  const at::Tensor reference = gradient_of(chain(x), x);
  std::vector<at::Tensor> passes;
  for (int i = 0; i < 3; ++i) passes.push_back(forward(chain, x));
  for (at::Tensor& y : passes) {  // oldest first: not the order that the prefetcher expects
    EXPECT_TRUE(same_bits(gradient_of(y, x), reference));
    y.reset();
  }
  EXPECT_EQ(store_.stats().passes, 3);
}

TEST_F(SavedTensorTest, APassDroppedWithoutABackward) {
  at::Tensor y = forward(chain, leaf());
  EXPECT_GT(store_.stats().spill.bytes, Bytes(0));
  y.reset();
  EXPECT_EQ(store_.stats().passes, 1);
  expect_all_is_over(store_);
  expect_gradient_of_plain(chain, leaf());
}

TEST_F(SavedTensorTest, AnExceptionInTheForward) {
  EXPECT_THROW(forward([] {
                 chain(leaf());
                 throw std::logic_error("in the forward");
               }),
               std::logic_error);
  EXPECT_EQ(Scope::current(), nullptr);
  expect_gradient_of_plain(chain, leaf());
}

struct Throws : torch::autograd::Function<Throws> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x) {
    context->save_for_backward({x});
    return x.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& /*gradients*/) {
    context->get_saved_variables();
    throw std::logic_error("thrown in a backward");
  }
};

TEST_F(SavedTensorTest, AnExceptionInTheBackward) {
  const at::Tensor x = leaf();
  at::Tensor y = forward([&] { return Throws::apply(x.sin()).exp().sum(); });
  EXPECT_THROW(gradient_of(y, x), std::logic_error);
  EXPECT_THROW(gradient_of(y, x, /*retain_graph=*/true), std::exception) << "torch freed part of the graph";
  y.reset();
  EXPECT_EQ(store_.stats().passes, 1);
  expect_all_is_over(store_);
  expect_gradient_of_plain(chain, x);
}

TEST_F(SavedTensorTest, ABackwardOnAnotherThread) {
  const at::Tensor x = leaf();
  const at::Tensor reference = gradient_of(chain(x), x);
  const at::Tensor y = forward(chain, x);
  std::thread([&] { EXPECT_TRUE(same_bits(gradient_of(y, x), reference)); }).join();
}

TEST_F(SavedTensorTest, BackwardsOnTwoThreadsOverOneGraph) {
  const at::Tensor x = leaf();
  const at::Tensor reference = gradient_of(chain(x), x);
  for (int i = 0; i < 20; ++i) {
    const at::Tensor y = forward(chain, x);
    const auto run = [&] { EXPECT_TRUE(same_bits(gradient_of(y, x, /*retain_graph=*/true), reference)); };
    std::thread other(run);
    run();
    other.join();
  }
}

TEST_F(SavedTensorTest, AGraphOutlivesItsStore) {
  const at::Tensor x = leaf();
  const at::Tensor reference = gradient_of(chain(x), x);
  at::Tensor y;
  {
    Store store(spilling(folder_));
    OffloadScope scope(store);
    y = chain(x);
  }
  EXPECT_TRUE(same_bits(gradient_of(y, x, /*retain_graph=*/true), reference));
  EXPECT_TRUE(same_bits(gradient_of(y, x), reference));
}

TEST_F(SavedTensorTest, CloseBringsAGraphHome) {
  const at::Tensor x = leaf();
  const at::Tensor reference = gradient_of(chain(x), x);
  const at::Tensor y = forward(chain, x);
  EXPECT_GT(store_.stats().spill.bytes, Bytes(0));
  store_.close();
  EXPECT_TRUE(same_bits(gradient_of(y, x), reference));
}

struct Greedy : torch::autograd::Function<Greedy> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x) {
    context->save_for_backward({x});
    return x * 2;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const at::Tensor before = context->get_saved_variables()[0].clone();
    const at::Tensor again = context->get_saved_variables()[0];
    EXPECT_TRUE(same_bits(before, again));
    return {gradients[0] * before * again};
  }
};

TEST_F(SavedTensorTest, ACustomFunctionAsksTwice) {
  expect_gradient_of_plain([](const at::Tensor& x) { return Greedy::apply(x.sin()).sum(); }, leaf());
}

TEST_F(SavedTensorTest, ATensorThatIsWrittenOnlyAfterItWasPacked) {
  // rrelu saves its noise before the kernel fills it: a hook that copied at once would have garbage.
  expect_gradient_of_plain(
      [](const at::Tensor& x) {
        at::manual_seed(5);
        return at::rrelu(x * 2, 0.1, 0.3, /*training=*/true).sum();
      },
      leaf());
}

TEST_F(SavedTensorTest, LayoutsAndNumberKinds) {
  using View = at::Tensor (*)(const at::Tensor&);
  const std::vector<std::pair<std::string, View>> views = {
      {"transposed", [](const at::Tensor& t) { return t.transpose(0, 3); }},
      {"every other", [](const at::Tensor& t) { return t.slice(0, 1, 4).slice(3, 2, 14, 2); }},
      {"expanded",
       [](const at::Tensor& t) {
         return t.narrow(1, 0, 1).expand({4, 4, 16, 16});
       }},
      {"channels last", [](const at::Tensor& t) { return t.contiguous(at::MemoryFormat::ChannelsLast); }},
      {"conjugate", [](const at::Tensor& t) { return t.to(at::kComplexFloat).mul(t + 1).conj(); }},
      {"negative", [](const at::Tensor& t) { return at::imag(t.to(at::kComplexDouble).mul(t + 1).conj()); }},
      {"complex seen as real", [](const at::Tensor& t) { return at::view_as_real(t.to(at::kComplexFloat)); }},
      {"real seen as complex",
       [](const at::Tensor& t) {
         return at::view_as_complex(t.view({-1, 2})).narrow(0, 3, 1500);
       }},
      {"half", [](const at::Tensor& t) { return t.to(at::kBFloat16); }},
  };
  for (const auto& [name, view] : views) {
    SCOPED_TRACE(name);
    expect_gradient_of_plain(
        [&, of = view](const at::Tensor& x) {
          const at::Tensor viewed = of(x.view({4, 4, 16, 16}) * 1.25);
          const at::Tensor out = viewed * viewed * (viewed + 1);
          return (out.is_complex() ? at::real(out) : out).to(at::kFloat).sum();
        },
        leaf());
  }
}

}  // namespace
}  // namespace ebbtide::test
