#include <ebbtide/pinned_pool/few.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

namespace ebbtide {
namespace {

using Numbers = Few<std::shared_ptr<int>>;

std::vector<int> values(const Numbers& numbers) {
  std::vector<int> values;
  for (const auto& number : numbers) values.push_back(*number);
  EXPECT_EQ(values.size(), numbers.size());
  EXPECT_EQ(values.empty(), numbers.empty());
  return values;
}
std::shared_ptr<int> number(int value) {
  return std::make_shared<int>(value);
}
Numbers up_to(int last) {
  Numbers numbers;
  for (int i = 1; i <= last; ++i) numbers.push_back(number(i));
  return numbers;
}

TEST(Few, HoldsThemInOrder) {
  EXPECT_THAT(values(up_to(0)), testing::IsEmpty());
  EXPECT_THAT(values(up_to(1)), testing::ElementsAre(1));
  EXPECT_THAT(values(up_to(3)), testing::ElementsAre(1, 2, 3));
  EXPECT_THAT(values(Numbers{number(4), number(5)}), testing::ElementsAre(4, 5));
  EXPECT_EQ(*up_to(3)[1], 2);
  EXPECT_EQ(*up_to(2).front(), 1);
}

TEST(Few, LetsGoOfWhatItDrops) {
  for (int count = 1; count <= 4; ++count) {
    for (int drop = 1; drop <= count; ++drop) {
      Numbers numbers = up_to(count);
      const std::weak_ptr<int> dropped = numbers[static_cast<size_t>(drop - 1)];
      numbers.erase(dropped.lock());
      EXPECT_TRUE(dropped.expired());
      std::vector<int> left;
      for (int i = 1; i <= count; ++i)
        if (i != drop) left.push_back(i);
      EXPECT_EQ(values(numbers), left);
      numbers.push_back(number(9));
      left.push_back(9);
      EXPECT_EQ(values(numbers), left) << "and takes more";
      const std::weak_ptr<int> last = numbers[left.size() - 1];
      numbers.clear();
      EXPECT_TRUE(last.expired());
      EXPECT_TRUE(numbers.empty());
    }
  }
}

TEST(Few, CopiesAndMovesAndSwaps) {
  for (int count = 0; count <= 3; ++count) {
    Numbers one = up_to(count), two = up_to(2);
    const Numbers copy = one;
    std::swap(one, two);
    EXPECT_EQ(values(two), values(copy));
    EXPECT_EQ(values(one), values(up_to(2)));
    const Numbers moved = std::move(two);
    EXPECT_EQ(values(moved), values(copy));
    EXPECT_TRUE(two.empty());  // NOLINT(bugprone-use-after-move)
  }
}

}  // namespace
}  // namespace ebbtide
