#include <ebbtide/store/intrusive_list.h>

#include <gtest/gtest.h>

#include <vector>

namespace ebbtide {
namespace {

struct Item : ListLink<Item> {
  explicit Item(int n) : number(n) {}
  int number;
};

std::vector<int> numbers(const IntrusiveList<Item>& list) {
  std::vector<int> result;
  for (const Item* item = list.front(); item != nullptr; item = IntrusiveList<Item>::next(*item))
    result.push_back(item->number);
  return result;
}

TEST(IntrusiveList, KeepsOrderAndRemovesAnywhere) {
  Item a(1), b(2), c(3), d(4);
  IntrusiveList<Item> list;
  EXPECT_TRUE(list.empty());
  list.push_back(b);
  list.push_back(c);
  list.push_front(a);
  list.push_back(d);
  EXPECT_EQ(numbers(list), (std::vector<int>{1, 2, 3, 4}));
  list.remove(b);
  EXPECT_FALSE(list.contains(b));
  EXPECT_EQ(numbers(list), (std::vector<int>{1, 3, 4}));
  list.remove(a);
  list.remove(d);
  EXPECT_EQ(list.front(), &c);
  EXPECT_EQ(list.back(), &c);
  list.remove(c);
  EXPECT_TRUE(list.empty());
  list.push_back(b);  // what was removed may come again
  EXPECT_EQ(numbers(list), (std::vector<int>{2}));
  list.remove(b);
}

TEST(IntrusiveList, AnElementKnowsItsList) {
  Item a(1);
  IntrusiveList<Item> one, other;
  one.push_back(a);
  EXPECT_TRUE(one.contains(a));
  EXPECT_FALSE(other.contains(a));
  one.remove(a);
  other.push_back(a);
  EXPECT_TRUE(other.contains(a));
  other.remove(a);
}

}  // namespace
}  // namespace ebbtide
