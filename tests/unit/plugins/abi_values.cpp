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
  const std::vector<Rule> rules{prefix, domain};
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
