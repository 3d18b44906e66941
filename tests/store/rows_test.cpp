#include <ebbtide/store/rows.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <set>
#include <vector>

namespace ebbtide {
namespace {

Rows rows(int64_t row, int64_t pitch, int64_t count) {
  return {Bytes(row), Bytes(pitch), count};
}

TEST(Rows, PayWhereTheyAreWideAndFew) {
  EXPECT_TRUE(rows(512, 1024, 8).pay());
  EXPECT_TRUE(rows(4096, 3 * 4096, 100).pay()) << "q of a fused qkv";
  EXPECT_FALSE(rows(511, 4096, 8).pay()) << "narrow";
  EXPECT_FALSE(rows(3000, 4096, 8).pay()) << "more than half";
  EXPECT_FALSE(rows(512, int64_t{1} << 31, 8).pay()) << "further apart than a device copies";
  EXPECT_FALSE(rows(512, 1024, 1).pay());
  EXPECT_FALSE(Rows().pay());
}

std::set<int64_t> bytes_of(int64_t begin, int64_t end, const Rows& of) {
  std::set<int64_t> bytes;
  if (of.none())
    for (int64_t at = begin; at < end; ++at) bytes.insert(at);
  for (int64_t r = 0; r < of.count; ++r)
    for (int64_t at = 0; at < of.row.count(); ++at) bytes.insert(begin + r * of.pitch.count() + at);
  return bytes;
}

TEST(Rows, HoldNothingThatIsNotInThem) {
  const Rows outer = rows(3, 7, 4);
  const int64_t begin = 5;
  const std::set<int64_t> held = bytes_of(begin, 0, outer);
  int yes = 0;
  for (int64_t at = 0; at < 36; ++at) {
    for (int64_t count = 0; count <= 5; ++count) {
      for (int64_t row = 1; row <= 5; ++row) {
        for (int64_t pitch = row; pitch <= 15; ++pitch) {
          const Rows inner = count == 0 ? Rows() : rows(row, pitch, count);
          const int64_t end = count == 0 ? at + pitch : at + pitch * (count - 1) + row;
          const std::set<int64_t> wanted = bytes_of(at, end, inner);
          const bool inside = std::ranges::includes(held, wanted);
          const bool said = outer.hold(Bytes(begin), Bytes(at), Bytes(end), inner);
          ASSERT_LE(said, inside) << at << ": " << count << " rows of " << row << " every " << pitch;
          yes += said;
        }
      }
    }
  }
  EXPECT_GT(yes, 100);
}

TEST(Rows, HoldThemselvesAndWhatIsCutOutOfThem) {
  const Rows outer = rows(64, 256, 10);
  const auto holds = [&](int64_t at, const Rows& inner) {
    return outer.hold(Bytes(1000), Bytes(at), Bytes(at) + inner.pitch * (inner.count - 1) + inner.row, inner);
  };
  EXPECT_TRUE(holds(1000, outer));
  EXPECT_TRUE(holds(1000 + 32, rows(32, 256, 10))) << "some columns";
  EXPECT_TRUE(holds(1000 + 256, rows(64, 256, 9))) << "some rows";
  EXPECT_TRUE(holds(1000 + 256, rows(8, 512, 5))) << "every other";
  EXPECT_TRUE(outer.hold(Bytes(1000), Bytes(1000 + 256 * 3), Bytes(1000 + 256 * 3 + 64), Rows())) << "one";
  EXPECT_TRUE(holds(1000 + 256 * 3, rows(8, 16, 4))) << "parts of one";
  EXPECT_FALSE(holds(1000 + 256, outer));
  EXPECT_FALSE(holds(1000 + 33, rows(32, 256, 10)));
  EXPECT_FALSE(outer.hold(Bytes(1000), Bytes(1000), Bytes(1000 + 256), Rows()));
}

struct Host {
  explicit Host(const std::vector<size_t>& pieces) {
    for (const size_t bytes : pieces) memory.emplace_back(bytes);
    for (auto& piece : memory) list.push_back({piece.data(), piece.size()});
  }
  std::vector<std::vector<std::byte>> memory;
  Few<IoPiece> list;
};

void run(const CopyChunks& chunks) {
  for (const CopyChunk& chunk : chunks)
    for (size_t row = 0; row < chunk.rows; ++row)
      std::memcpy(static_cast<std::byte*>(chunk.to) + row * chunk.to_pitch,
                  static_cast<const std::byte*>(chunk.from) + row * chunk.from_pitch, chunk.bytes);
}

TEST(ChunksBetween, TakeAllThereAndBackHoweverTheHostMemoryIsCut) {
  const Rows shapes[] = {Rows(), rows(10, 25, 4), rows(7, 8, 6), rows(30, 31, 1)};
  const std::vector<std::vector<size_t>> cuts = {{64},         {40},    {10, 30}, {5, 5, 64}, {1, 2, 3, 4, 50},
                                                 {20, 20, 20}, {35, 64}};
  for (const Rows& shape : shapes) {
    const Bytes hull = shape.none() ? Bytes(40) : shape.pitch * (shape.count - 1) + shape.row;
    const auto size = static_cast<size_t>(hull.count());
    const Bytes packed = shape.none() ? hull : shape.bytes();
    const std::set<int64_t> touched = bytes_of(0, hull.count(), shape);
    std::vector<std::byte> device(size), back(size, std::byte{0xEE});
    for (size_t i = 0; i < size; ++i) device[i] = std::byte(i + 1);
    for (const auto& cut : cuts) {
      Host host(cut);
      size_t room = 0;
      for (const size_t bytes : cut) room += bytes;
      if (room < static_cast<size_t>(packed.count())) continue;
      std::ranges::fill(back, std::byte{0xEE});
      const CopyChunks out = chunks_between(device.data(), hull, shape, host.list, Direction::kOut);
      run(out);
      size_t bytes = 0;
      for (const CopyChunk& chunk : out) bytes += chunk.total_bytes();
      EXPECT_EQ(bytes, static_cast<size_t>(packed.count()));
      EXPECT_EQ(host.memory[0][0], std::byte{1}) << "packed from the first byte on";
      run(chunks_between(back.data(), hull, shape, host.list, Direction::kIn));
      for (size_t i = 0; i < size; ++i)
        ASSERT_EQ(back[i], touched.contains(static_cast<int64_t>(i)) ? device[i] : std::byte{0xEE})
            << i << " of rows of " << to_string(shape.row);
    }
  }
}

TEST(ChunksBetween, RowsInOnePieceAreOneChunk) {
  std::byte device[4096], host[4096];
  const CopyChunks chunks =
      chunks_between(device, Bytes(900), rows(100, 400, 3), {{host, sizeof host}}, Direction::kOut);
  ASSERT_EQ(chunks.size(), 1u);
  EXPECT_EQ(chunks[0].rows, 3u);
  EXPECT_EQ(chunks[0].from_pitch, 400u);
  EXPECT_EQ(chunks[0].to_pitch, 100u);
}

}  // namespace
}  // namespace ebbtide
