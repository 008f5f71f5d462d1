// Values across the C boundary: whole both ways, and nothing of a liar's gets in.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "plugins/abi_values.hpp"

#include <doctest/doctest.h>

using namespace sluice;

namespace {

sluice_rule raw_rule() {
  sluice_rule rule{};
  rule.size = sizeof rule;
  rule.action = SLUICE_RULE_ALLOW;
  rule.family = 4;
  rule.prefix_length = 8;
  rule.address[0] = 10;
  return rule;
}

}  // namespace

TEST_CASE("rules come back as they went") {
  Rule prefix;
  prefix.action = Action::allow;
  prefix.prefix = *Prefix::parse("2001:db8::/32");
  prefix.ports = {*PortRange::parse("tcp/443"), *PortRange::parse("udp")};
  prefix.expires = {77};
  prefix.name = "here";
  Rule domain;
  domain.domain = ".example.org";
  Rule inside;
  inside.action = Action::allow;
  inside.domain = "*.corp";
  inside.ranges = {*Prefix::parse("10.0.0.0/8"), *Prefix::parse("fd00::/8")};
  inside.types = {15, 65280};
  inside.public_suffix = true;
  const std::vector<Rule> rules{prefix, domain, inside};
  const abi::RawRules raw(rules);
  const auto back = abi::rules_from(raw.data(), raw.size());
  REQUIRE(back.has_value());
  CHECK(*back == rules);
}

TEST_CASE("a rule at fault is named by its index") {
  std::array rules{raw_rule(), raw_rule(), raw_rule()};
  rules[2].address[3] = 1;
  const auto result = abi::rules_from(rules.data(), rules.size());
  REQUIRE_FALSE(result.has_value());
  CHECK(result.error().rule_index == 2);
  CHECK(result.error().message.starts_with("rule 2: "));
}

TEST_CASE("a rule of a plugin built before there were attributes has none") {
  std::array<char, 2 * offsetof(sluice_rule, ranges)> old{};
  for (int i = 0; i < 2; ++i) {
    auto rule = raw_rule();
    rule.size = offsetof(sluice_rule, ranges);
    rule.range_count = 99;  // not the old writer's: beyond its size
    std::memcpy(old.data() + i * rule.size, &rule, rule.size);
  }
  const auto result = abi::rules_from(reinterpret_cast<const sluice_rule*>(old.data()), 2);
  REQUIRE(result.has_value());
  CHECK(result->at(1).ranges.empty());
}

TEST_CASE("attributes without data, without end or with host bits are refused") {
  auto rule = raw_rule();
  rule.range_count = 1;
  CHECK_FALSE(abi::rules_from(&rule, 1).has_value());
  const sluice_prefix crooked{.family = 4, .length = 8, .reserved = {}, .address = {10, 1}};
  rule.ranges = &crooked;
  CHECK_FALSE(abi::rules_from(&rule, 1).has_value());
  rule.range_count = 1'000'000;
  CHECK(abi::rules_from(&rule, 1).error().code == E2BIG);
  rule.range_count = 0;
  rule.type_count = 1;
  CHECK_FALSE(abi::rules_from(&rule, 1).has_value());
}

TEST_CASE("what a descriptor may be kept under") {
  const auto name = [](std::string_view text) { return abi::fd_name_from(abi::raw(text)); };
  CHECK(name("udp4.0_x-Y"));
  CHECK_FALSE(name(""));
  CHECK_FALSE(name("a:b"));  // the service manager's separator
  CHECK_FALSE(name("a\nb"));
  CHECK_FALSE(name(std::string(65, 'a')));
}

TEST_CASE("an endpoint tells its family") {
  sluice_endpoint raw{};
  abi::write_endpoint(&raw, {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 53}, 53});
  CHECK(raw.family == 4);
  CHECK(raw.address[0] == 192);
  CHECK(raw.address[3] == 53);
  CHECK(raw.port == 53);
  abi::write_endpoint(&raw, {{0x20, 1, 0xd, 0xb8}, 53});
  CHECK(raw.family == 6);
  CHECK(raw.address[3] == 0xb8);
}

TEST_CASE("an array whose elements differ in size is refused") {
  std::array rules{raw_rule(), raw_rule()};
  rules[1].size += 8;
  CHECK_FALSE(abi::rules_from(rules.data(), rules.size()).has_value());
}

TEST_CASE("the caller's result is filled as far as it reaches, and no further") {
  struct {
    sluice_applied applied;
    char beyond[8];
  } room{};
  std::memset(&room, 0x55, sizeof room);
  room.applied.size = offsetof(sluice_applied, digest);  // an older caller
  abi::write_applied(&room.applied, {.generation = {9}, .digest = {1, 2}});
  CHECK(room.applied.generation == 9);
  CHECK(room.applied.digest[0] == 0x5555555555555555ull);
  abi::write_error(&room.applied, {.message = "no", .code = EINVAL, .rule_index = 4});
  CHECK(room.applied.rule_index == 4);
  CHECK(room.applied.message[0] == 0x55);
  abi::write_applied(nullptr, {});
  abi::write_error(nullptr, {});
}

TEST_CASE("a long message is cut between characters and terminated") {
  sluice_applied applied{};
  applied.size = sizeof applied;
  std::string text(sizeof applied.message - 2, 'x');
  abi::write_error(&applied, {.message = text + "\xc3\xa4", .code = EINVAL});
  CHECK(std::string(applied.message) == text);
}

TEST_CASE("a short counters struct gets what it has room for") {
  sluice_counters_info info{};
  info.size = offsetof(sluice_counters_info, denied_packets);
  abi::write_counters(&info, {.allowed_packets = 1, .allowed_bytes = 2, .denied_packets = 3});
  CHECK(info.allowed_bytes == 2);
  CHECK(info.denied_packets == 0);
  CHECK(info.size == offsetof(sluice_counters_info, denied_packets));
}

TEST_CASE("labels without a key, without data or without end are refused") {
  const sluice_label keyless{{"", 0}, {"v", 1}};
  CHECK_FALSE(abi::labels_from(&keyless, 1).has_value());
  const sluice_label dataless{{nullptr, 3}, {"v", 1}};
  CHECK_FALSE(abi::labels_from(&dataless, 1).has_value());
  CHECK(abi::labels_from(nullptr, 100'000).error().code == E2BIG);
  CHECK(abi::labels_from(nullptr, 0)->empty());
}

TEST_CASE("a config carries every option, set or not") {
  OptionValue list{.path = "match", .type = OptionDeclaration::Type::string_list, .is_set = true};
  list.items = {"tap*", "veth*"};
  const std::vector<OptionValue> values{list, {.path = "unset"}};
  const std::string here = "/etc/sluice", state = "/var/lib/x";
  const std::string instance = "taps";
  const abi::RawConfig raw(instance, values, here, state);
  REQUIRE(raw.get()->value_count == 2);
  CHECK(raw.get()->values[0].item_count == 2);
  CHECK(abi::view(raw.get()->values[0].items[1]) == "veth*");
  CHECK(raw.get()->values[1].is_set == 0);
  CHECK(abi::view(raw.get()->state_directory) == state);
}
