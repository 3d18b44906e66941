// What programs do with streams of their own on accelerators.
#include <ATen/ops/zeros.h>
#include <c10/core/StreamGuard.h>
#include <tests/hooks/accelerator_support.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <utility>

namespace ebbtide::test {
namespace {

TEST(AcceleratorTest, TensorOfASideStreamSavedOnTheMainOne) {
  expect_same_as_plain([](SimAccelerator& sim, Store* store) {
    const c10::Stream side = sim.side_stream();
    const at::Tensor weight = device_leaf(3);
    order(default_stream(), side);
    at::Tensor loss = under(store, [&] {
      at::Tensor loaded, computed;
      {
        const c10::StreamGuard guard(side);
        loaded = leaf(1).detach().to(SimAccelerator::device());
        computed = (weight * 2).exp();
      }
      order(side, default_stream());
      // As torch asks of whoever uses a tensor on another stream than it was allocated on.
      loaded.record_stream(default_stream());
      computed.record_stream(default_stream());
      return chain(weight * loaded) + (computed * loaded * computed).sum();
    });
    {
      const c10::StreamGuard guard(side);  // would be given the memory of what has left
      for (int i = 0; i < 4; ++i) at::zeros({kFloats}, weight.options().requires_grad(false));
    }
    loss.backward();
    return to_cpu({weight.grad()});
  });
}

// Torch need not be told of the main stream: the graph keeps the tensor until the side stream comes after its last use.
// The store lets go of it long before.
TEST(AcceleratorTest, TensorOfASideStreamThatTheGraphKeeps) {
  expect_same_as_plain(
      [](SimAccelerator& sim, Store* store) {
        const c10::Stream side = sim.side_stream();
        const at::Tensor weight = device_leaf(3);
        const auto on_side = [&](const std::function<void()>& body) {
          const c10::StreamGuard guard(side);
          body();
        };
        order(default_stream(), side);
        at::Tensor loss = under(store, [&] {
          at::Tensor loaded;
          on_side([&] { loaded = leaf(1).detach().to(SimAccelerator::device()); });
          order(side, default_stream());
          return (weight * loaded).sum();
        });
        // Would be given its memory.
        on_side([&] { at::zeros({kFloats}, weight.options().requires_grad(false)); });
        const at::Tensor gradient = gradient_of(loss, weight, /*retain_graph=*/true);
        order(default_stream(), side);
        loss = at::Tensor();
        return to_cpu({gradient});
      },
      {Bytes(0)});
}

// As above, and the tensor's node is one of the main stream, so that nothing but its memory is of the side stream.
TEST(AcceleratorTest, TensorOfASideStreamWrittenOnTheMainOne) {
  expect_same_as_plain(
      [](SimAccelerator& sim, Store* store) {
        const c10::Stream side = sim.side_stream();
        const at::Tensor weight = device_leaf(3);
        const auto zeros = [&] { return at::zeros({kFloats}, weight.options().requires_grad(false)); };
        order(default_stream(), side);
        at::Tensor loss = under(store, [&] {
          at::Tensor written;
          {
            const c10::StreamGuard guard(side);
            written = zeros();
          }
          order(side, default_stream());
          written.add_(weight);
          return (written * written).sum();
        });
        {
          const c10::StreamGuard guard(side);
          zeros();
        }
        const at::Tensor gradient = gradient_of(loss, weight, /*retain_graph=*/true);
        order(default_stream(), side);
        loss = at::Tensor();
        return to_cpu({gradient});
      },
      {Bytes(0)});
}

TEST(AcceleratorTest, StreamSwitchedBetweenForwardAndBackward) {
  expect_same_as_plain([](SimAccelerator& sim, Store* store) {
    const c10::Stream side = sim.side_stream(), third = sim.side_stream();
    const at::Tensor x = device_leaf(1);
    at::Tensor hidden, loss;
    under(store, [&] {
      hidden = (x * 2).sin().exp();
      order(default_stream(), side);
      const c10::StreamGuard guard(side);
      hidden.record_stream(side);
      x.record_stream(side);
      loss = chain(hidden * x);
      return loss;
    });
    order(side, third);
    loss.record_stream(third);
    {
      const c10::StreamGuard guard(third);
      loss.backward();
    }
    order(third, default_stream());
    return to_cpu({x.grad()});
  });
}

TEST(AcceleratorTest, TensorSavedOnTwoStreams) {
  expect_same_as_plain([](SimAccelerator& sim, Store* store) {
    const c10::Stream side = sim.side_stream();
    const at::Tensor x = device_leaf(1);
    at::Tensor on_main, on_side;
    under(store, [&] {
      const at::Tensor shared = (x * 2).sin();
      order(default_stream(), side);
      shared.record_stream(side);
      on_main = (shared * shared.detach().clone()).exp().sum();
      const c10::StreamGuard guard(side);
      on_side = (shared * shared).cos().sum();
      return on_side;
    });
    Tensors seen = torch::autograd::grad({on_side}, {x}, {}, /*retain_graph=*/true);
    seen.push_back(torch::autograd::grad({on_main}, {x}, {}, /*retain_graph=*/true).front());
    seen.push_back(torch::autograd::grad({on_side}, {x}).front());
    order(side, default_stream());
    return to_cpu(seen);
  });
}

// A backward on one stream fetches ahead what the other's will ask for.
TEST(AcceleratorTest, StepsOnTwoStreamsInTurn) {
  expect_same_as_plain(
      [](SimAccelerator& sim, Store* store) {
        const c10::Stream side = sim.side_stream();
        const at::Tensor x = device_leaf(1);
        Tensors seen;
        for (int step = 0; step < 4; ++step) {
          at::Tensor loss = under(store, [&] {
            at::Tensor hidden = x * 2;
            for (int layer = 0; layer < 3; ++layer) {
              order(default_stream(), side);
              hidden.record_stream(side);
              {
                const c10::StreamGuard guard(side);
                hidden = (hidden.sin().exp() * hidden).cos();
              }
              order(side, default_stream());
              hidden.record_stream(default_stream());
              hidden = (hidden.sin() * hidden).cos();
            }
            return hidden.sum();
          });
          seen.push_back(gradient_of(loss, x));
        }
        return to_cpu(seen);
      },
      {Bytes(0), KiB(40), KiB(80)});
}

/// Reads what it saved on a stream of its own choice.
struct ReadsElsewhere : torch::autograd::Function<ReadsElsewhere> {
  static inline std::optional<c10::Stream> where;
  static inline at::Tensor seen;

  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x) {
    context->save_for_backward({x});
    return x * 2;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    order(default_stream(), *where);
    {
      const c10::StreamGuard guard(*where);
      seen = context->get_saved_variables()[0] * 3;
    }
    return {gradients[0] * 2};
  }
};

// The graph keeps what it saved until the main stream comes after the other's read.
TEST(AcceleratorTest, SavedTensorReadOnAnotherStream) {
  expect_same_as_plain(
      [](SimAccelerator& sim, Store* store) {
        const c10::Stream side = sim.side_stream();
        ReadsElsewhere::where = side;
        const at::Tensor x = device_leaf(1);
        at::Tensor loss = under(store, [&] {
          const at::Tensor hidden = x * 5;
          return ReadsElsewhere::apply(hidden).sum();
        });
        Tensors seen = {gradient_of(loss, x, /*retain_graph=*/true)};
        seen.push_back(under(store, [&] { return chain(x * 3); }).detach());  // makes room, and takes it
        order(side, default_stream());
        seen.push_back(std::exchange(ReadsElsewhere::seen, at::Tensor()));
        seen.back().record_stream(default_stream());
        loss = at::Tensor();
        return to_cpu(seen);
      },
      {Bytes(0), KiB(20), KiB(40)});
}

}  // namespace
}  // namespace ebbtide::test
