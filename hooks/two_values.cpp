#include <ebbtide/hooks/two_values.h>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

namespace ebbtide {
namespace {

constexpr size_t kWord = 64;      // elements whose bits are one word
constexpr int64_t kGrain = 1024;  // words for one thread

/// The values of bit 0 and bit 1.
template <class T>
struct Values {
  T zero;
  T one;
};

/// The first two; of one value alone the second is one that is not there.
template <class T>
Values<T> values_of(std::span<const T> elements) noexcept {
  const auto other = std::ranges::find_if(elements, [&](T element) { return element != elements[0]; });
  return Values<T>{elements[0], other != elements.end() ? *other : static_cast<T>(~elements[0])};
}

// Compilers turn the loops over a word's elements into vector instructions; between bits and bytes, multiplications.
static_assert(std::endian::native == std::endian::little);

/// 64 bytes of 0 or 1 as bits.
uint64_t bits_of_bytes(const std::array<uint8_t, kWord>& bytes) noexcept {
  uint64_t bits = 0;
  for (size_t i = 0; i < kWord; i += 8) {
    uint64_t eight = 0;
    std::memcpy(&eight, &bytes[i], 8);
    bits |= (eight * 0x0102040810204080u) >> 56 << i;
  }
  return bits;
}

std::array<uint8_t, kWord> bytes_of_bits(uint64_t bits) noexcept {
  std::array<uint8_t, kWord> bytes;
  for (size_t i = 0; i < kWord; i += 8) {
    const uint64_t spread = ((bits >> i & 0xff) * 0x0101010101010101u) & 0x8040201008040201u;  // byte k has bit k, or 0
    const uint64_t eight = ((spread + 0x7f7f7f7f7f7f7f7fu) | spread) >> 7 & 0x0101010101010101u;
    std::memcpy(&bytes[i], &eight, 8);
  }
  return bytes;
}

/// Nothing where there is a third value.
template <class T>
std::optional<uint64_t> encode(const T* elements, Values<T> values) noexcept {
  std::array<uint8_t, kWord> ones;
  T strange = 0;
  for (size_t i = 0; i < kWord; ++i) {
    const T element = elements[i];
    ones[i] = element == values.one;
    strange |= static_cast<T>(element != values.one) & static_cast<T>(element != values.zero);
  }
  return strange != 0 ? std::nullopt : std::optional(bits_of_bytes(ones));
}

template <class T>
void decode(uint64_t bits, Values<T> values, T* elements) noexcept {
  const std::array<uint8_t, kWord> ones = bytes_of_bits(bits);
  for (size_t i = 0; i < kWord; ++i) elements[i] = ones[i] != 0 ? values.one : values.zero;
}

/// Calls `each` with the number and the elements of each word, of which the last may be short. In several threads.
template <class T, class Each>
void for_words(std::span<T> elements, Each&& each) {
  const auto count = static_cast<int64_t>((elements.size() + kWord - 1) / kWord);
  at::parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
    for (auto word = static_cast<size_t>(begin); word < static_cast<size_t>(end); ++word)
      each(word, elements.subspan(word * kWord, std::min(kWord, elements.size() - word * kWord)));
  });
}

/// Undefined where there is a third value.
template <class T>
at::Tensor bits_of(std::span<const T> elements, Values<T> values) {
  const auto encode_part = [&](std::span<const T> part) {
    if (part.size() == kWord) return encode(part.data(), values);
    std::array<T, kWord> padded;
    padded.fill(values.zero);
    std::ranges::copy(part, padded.begin());
    return encode(padded.data(), values);
  };
  if (!encode_part(elements.first(std::min(kWord, elements.size())))) return {};  // most tensors
  at::Tensor bits = at::empty({static_cast<int64_t>((elements.size() + kWord - 1) / kWord)}, at::kLong);
  int64_t* const words = bits.mutable_data_ptr<int64_t>();
  std::atomic<bool> more_values{false};
  for_words(elements, [&](size_t word, std::span<const T> part) {
    if (more_values.load(std::memory_order_relaxed)) return;
    const std::optional<uint64_t> ones = encode_part(part);
    if (!ones) more_values = true;
    words[word] = static_cast<int64_t>(ones.value_or(0));
  });
  return more_values ? at::Tensor() : bits;
}

template <class T>
void fill(std::span<T> elements, Values<T> values, const at::Tensor& bits) {
  const int64_t* const words = bits.const_data_ptr<int64_t>();
  for_words(elements, [&](size_t word, std::span<T> part) {
    const auto ones = static_cast<uint64_t>(words[word]);
    if (part.size() == kWord) return decode(ones, values, part.data());
    for (size_t i = 0; i < part.size(); ++i) part[i] = (ones >> i & 1) != 0 ? values.one : values.zero;
  });
}

template <class T>
std::optional<Step> as_bits_of(const at::Tensor& tensor) {
  const std::span elements(static_cast<const T*>(tensor.const_data_ptr()), static_cast<size_t>(tensor.numel()));
  const Values<T> values = values_of(elements);
  at::Tensor bits = bits_of(elements, values);
  if (!bits.defined()) return std::nullopt;
  Step step{.op = "bits"};
  step.operands.push_back({.copy = std::move(bits)});
  step.redo = [values, sizes = tensor.sizes().vec(), strides = tensor.strides().vec(),
               options = tensor.options()](std::span<const at::Tensor> operands) {
    at::Tensor made = at::empty_strided(sizes, strides, options);
    fill(std::span(static_cast<T*>(made.mutable_data_ptr()), static_cast<size_t>(made.numel())), values, operands[0]);
    return made;
  };
  return step;
}

}  // namespace

std::optional<Step> as_bits(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return std::nullopt;
  switch (tensor.element_size()) {
    case 1:
      return as_bits_of<uint8_t>(tensor);
    case 2:
      return as_bits_of<uint16_t>(tensor);
    case 4:
      return as_bits_of<uint32_t>(tensor);
    case 8:
      return as_bits_of<uint64_t>(tensor);
    default:
      return std::nullopt;
  }
}

}  // namespace ebbtide
