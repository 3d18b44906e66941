#include <ebbtide/store/text_file.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "tests/store/device_trainer.h"

namespace ebbtide::test {
namespace {

/// All ranks of a job save what they have learned, to one name.
TEST(TextFile, ManyMayWriteItAtOnceAndOneOfThemHasWritten) {
  const TemporaryFolder folder("ebbtide-text-file-");
  const std::string path = folder.path() + "/plan.json";
  std::vector<std::string> texts;
  for (char letter = 'a'; letter < 'i'; ++letter) texts.emplace_back(size_t{1} << 18, letter);
  std::vector<std::thread> writers;
  for (const std::string& text : texts) {
    writers.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        const Status written = write_text_file(path, text);
        ASSERT_TRUE(written.ok()) << written.failure().message;
        EXPECT_THAT(texts, testing::Contains(read_text_file(path).value()));
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  const std::filesystem::directory_iterator files(folder.path());
  EXPECT_EQ(std::distance(begin(files), end(files)), 1) << "nothing is left beside it";
}

}  // namespace
}  // namespace ebbtide::test
