// Identical events become one with a count; a workload that is too various crowds out nobody.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "journal/window.hpp"

#include <doctest/doctest.h>

using namespace sluice;
using namespace sluice::journal;

namespace {

Event query(std::uint64_t id, std::string_view name, std::uint32_t count = 1,
            QueryVerdict verdict = QueryVerdict::denied) {
  return Event::of(
      QueryReport{.attachment = {id}, .name = name, .type = 1, .verdict = verdict, .count = count},
      nullptr);
}
Event denial(const char* source, const char* destination, std::uint16_t port) {
  return Event::of(Denial{.attachment = {7},
                          .reason = "mode",
                          .protocol = 6,
                          .destination_port = port,
                          .source = Address::parse(source),
                          .destination = Address::parse(destination)},
                   nullptr);
}

}  // namespace

TEST_CASE("what a reader would call the same is one event with a count") {
  Window window({});
  auto early = query(7, "a.example");
  early.first = early.last = Time(std::chrono::seconds(2));
  auto late = query(7, "a.example", 3);
  late.first = late.last = Time(std::chrono::seconds(4));
  late.push_time = std::chrono::microseconds(9);
  window.add(early);
  window.add(query(8, "a.example"));  // another's
  window.add(query(7, "b.example"));
  window.add(late);
  window.add(query(7, "a.example", 1, QueryVerdict::allowed));
  window.add(denial("10.0.0.2", "192.0.2.1", 22));
  window.add(denial("10.0.0.3", "192.0.2.1", 22));  // made up, perhaps
  window.add(denial("10.0.0.2", "192.0.2.1", 23));
  const auto events = window.take();
  REQUIRE(events.size() == 6);
  CHECK(events[0].name == "a.example");
  CHECK(events[0].count == 4);
  CHECK(events[0].first == Time(std::chrono::seconds(2)));
  CHECK(events[0].last == Time(std::chrono::seconds(4)));
  CHECK(events[0].push_time == std::chrono::microseconds(9));
  CHECK(events[4].count == 2);
  CHECK(events[5].denial.destination_port == 23);
  CHECK(window.empty());
  CHECK(window.take().empty());
}

TEST_CASE("a name and a rule cannot be made to look like others") {
  Window window({});
  auto one = query(7, "ab");
  one.rule = "c";
  auto two = query(7, "a");
  two.rule = "bc";
  window.add(one);
  window.add(two);
  CHECK(window.take().size() == 2);
}

TEST_CASE("beyond its share a workload is only counted, and its neighbour is not") {
  Window window({.of_workload = 10, .of_all = 1000});
  for (int i = 0; i < 5000; ++i) window.add(query(7, "n" + std::to_string(i) + ".example"));
  window.add(query(7, "n3.example"));  // known: still counted where it belongs
  window.add(query(7, "ok.example", 1, QueryVerdict::allowed));
  window.add(query(8, "neighbour.example"));
  const auto events = window.take();
  REQUIRE(events.size() == 13);
  std::uint64_t count = 0;
  for (const auto& event : events) count += event.count;
  CHECK(count == 5003);
  CHECK(events[10].kind == Event::Kind::more_queries);
  CHECK(events[10].count == 4990);
  CHECK(events[10].verdict == QueryVerdict::denied);
  CHECK(events[11].kind == Event::Kind::more_queries);
  CHECK(events[11].verdict == QueryVerdict::allowed);
  CHECK(events[12].name == "neighbour.example");
}

TEST_CASE("the whole window is bounded as well") {
  Window window({.of_workload = 10, .of_all = 30});
  for (std::uint64_t id = 1; id <= 20; ++id)
    for (int i = 0; i < 10; ++i) window.add(query(id, "n" + std::to_string(i) + ".example"));
  const auto events = window.take();
  std::uint64_t count = 0;
  for (const auto& event : events) count += event.count;
  CHECK(count == 200);
  CHECK(events.size() <= 30 + 20);
}
