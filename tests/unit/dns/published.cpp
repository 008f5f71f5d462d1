#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/published.hpp"

#include <doctest/doctest.h>

#include <thread>
#include <vector>

using namespace sluice::dns;

TEST_CASE("a reader sees what was published last, and keeps it alive") {
  Published<int> value;
  Published<int>::Reader reader(value);
  CHECK(reader.get() == nullptr);
  value.publish(std::make_shared<const int>(1));
  const int* first = reader.get();
  REQUIRE(first != nullptr);
  CHECK(*first == 1);
  CHECK(reader.get() == first);
  const std::weak_ptr<const int> alive = reader.pointer();
  const auto version = reader.version();
  value.publish(std::make_shared<const int>(2));
  CHECK_FALSE(alive.expired());
  CHECK(*first == 1);
  CHECK(*reader.get() == 2);
  CHECK(alive.expired());
  CHECK(reader.version() > version);
  value.publish(nullptr);
  CHECK(reader.get() == nullptr);
}

TEST_CASE("many readers never see less than they have seen") {
  Published<std::pair<int, int>> value(std::make_shared<const std::pair<int, int>>(0, 0));
  std::atomic<int> wrong{0};
  std::atomic<bool> stop{false};
  std::vector<std::jthread> readers;
  for (int i = 0; i < 3; ++i)
    readers.emplace_back([&] {
      Published<std::pair<int, int>>::Reader reader(value);
      for (int last = 0; !stop;) {
        const auto [first, second] = *reader.get();
        wrong += first != second || first < last;
        last = first;
      }
    });
  for (int i = 1; i <= 20000; ++i) value.publish(std::make_shared<const std::pair<int, int>>(i, i));
  stop = true;
  readers.clear();
  CHECK(wrong == 0);
}
