// An earlier release's pinned maps are taken over: no verdict changes, and what was noted is known.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <cstddef>
#include <map>
#include <tuple>

#include "packet/verdicts/gate.hpp"

using namespace sluice;
using namespace sluice::test;
namespace fs = std::filesystem;

namespace {

void repin(const Fd& map, const fs::path& path) {
  REQUIRE(map);
  fs::remove(path);
  REQUIRE(bpf_obj_pin(map.get(), path.c_str()) == 0);
}

void say_layout(const fs::path& maps, std::uint32_t layout) {
  const Fd settings(bpf_obj_get((maps / "settings").c_str()));
  const std::uint32_t zero = 0;
  sluice_settings host{};
  REQUIRE(bpf_map_lookup_elem(settings.get(), &zero, &host) == 0);
  host.layout_version = layout;
  REQUIRE(bpf_map_update_elem(settings.get(), &zero, &host, BPF_ANY) == 0);
}

// The same contents as layout 3 had them.
void as_layout_3(const fs::path& maps) {
  say_layout(maps, 3);
  fs::remove(maps / "own_flows");
  const Fd learned(bpf_obj_get((maps / "learned").c_str()));
  sluice_learned_key key{}, next{};
  for (const void* at = nullptr; bpf_map_get_next_key(learned.get(), at, &next) == 0; at = &key) {
    key = next;
    sluice_learned value{};
    REQUIRE(bpf_map_lookup_elem(learned.get(), &key, &value) == 0);
    const sluice_learned_3 old{.active_until = value.active_until,
                               .grace_until = value.grace_until,
                               .last_seen = value.last_seen,
                               .port_set = value.port_set,
                               .owner = value.owner};
    static_assert(sizeof(old) == sizeof(value));
    REQUIRE(bpf_map_update_elem(learned.get(), &key, &old, BPF_EXIST) == 0);
  }
}

// As layout 2 had them.
void as_layout_2(const fs::path& maps) {
  as_layout_3(maps);
  say_layout(maps, 2);

  const Fd slots(bpf_obj_get((maps / "slots").c_str()));
  bpf_map_info info{};
  std::uint32_t length = sizeof(info);
  REQUIRE(bpf_obj_get_info_by_fd(slots.get(), &info, &length) == 0);
  LIBBPF_OPTS(bpf_map_create_opts, mapped_map, .map_flags = BPF_F_MMAPABLE);
  const Fd old_slots(bpf_map_create(BPF_MAP_TYPE_ARRAY, "slots", 4, offsetof(sluice_slot, inbound),
                                    info.max_entries, &mapped_map));
  REQUIRE(old_slots);
  for (std::uint32_t i = 0; i < info.max_entries; ++i) {
    sluice_slot slot{};
    REQUIRE(bpf_map_lookup_elem(slots.get(), &i, &slot) == 0);
    REQUIRE(bpf_map_update_elem(old_slots.get(), &i, &slot, BPF_ANY) == 0);
  }
  repin(old_slots, maps / "slots");

  const Fd blobs(bpf_obj_get((maps / "blobs").c_str()));
  length = sizeof(info);
  REQUIRE(bpf_obj_get_info_by_fd(blobs.get(), &info, &length) == 0);
  LIBBPF_OPTS(bpf_map_create_opts, inner, .map_flags = BPF_F_MMAPABLE | BPF_F_INNER_MAP);
  const Fd shape(bpf_map_create(BPF_MAP_TYPE_ARRAY, "b", 4, sizeof(sluice_element), 1, &inner));
  LIBBPF_OPTS(bpf_map_create_opts, outer, .inner_map_fd = static_cast<__u32>(shape.get()));
  const Fd old_blobs(
      bpf_map_create(BPF_MAP_TYPE_ARRAY_OF_MAPS, "blobs", 4, 4, info.max_entries, &outer));
  REQUIRE(old_blobs);
  for (std::uint32_t i = 0; i < info.max_entries; ++i) {
    std::uint32_t id = 0;
    if (bpf_map_lookup_elem(blobs.get(), &i, &id) != 0) continue;
    const Fd paged(bpf_map_get_fd_by_id(id));
    bpf_map_info pages{};
    length = sizeof(pages);
    REQUIRE(bpf_obj_get_info_by_fd(paged.get(), &pages, &length) == 0);
    const Fd plain(bpf_map_create(BPF_MAP_TYPE_ARRAY, "b", 4, sizeof(sluice_element),
                                  pages.max_entries * SLUICE_PAGE_ELEMENTS, &inner));
    for (std::uint32_t at = 0; at < pages.max_entries; ++at) {
      sluice_blob_page page{};
      REQUIRE(bpf_map_lookup_elem(paged.get(), &at, &page) == 0);
      for (std::uint32_t lane = 0; lane < SLUICE_PAGE_ELEMENTS; ++lane) {
        const std::uint32_t element = at * SLUICE_PAGE_ELEMENTS + lane;
        REQUIRE(bpf_map_update_elem(plain.get(), &element, &page.element[lane], BPF_ANY) == 0);
      }
    }
    const int fd = plain.get();
    REQUIRE(bpf_map_update_elem(old_blobs.get(), &i, &fd, BPF_ANY) == 0);
  }
  repin(old_blobs, maps / "blobs");
}

// Far too many for the test's heap of 1 MiB.
std::vector<Rule> many_rules() {
  std::vector<Rule> rules;
  for (unsigned i = 0; i < 30000; ++i)
    rules.push_back(
        rule(i % 3 == 0 ? Action::deny : Action::allow,
             fmt::format("11.{}.{}.{}/32", i >> 13, i >> 5 & 255, (i & 31) << 3 | i % 7).c_str()));
  return rules;
}

}  // namespace

TEST_CASE("the pinned maps of layouts 2 and 3 are taken over, and no verdict changes") {
  void (*as_before)(const fs::path&) = nullptr;
  SUBCASE("layout 2") {
    as_before = as_layout_2;
  }
  SUBCASE("layout 3") {
    as_before = as_layout_3;
  }
  Gate gate;
  const std::uint32_t large = gate.attach("host1");
  gate.publish({allowing("198.51.100.0/24", {"tcp/443"}), denying("198.51.100.9/32"),
                allowing("2001:db8:5::/48")});
  gate.publish_at(large, many_rules(), Mode::allowlist);
  const auto digest = [&](std::uint32_t slot) {
    for (const auto& adopted : gate.plane().adopted())
      if (adopted.slot == slot) return adopted.policy_digest;
    return std::array<std::uint64_t, 2>{};
  };
  gate.learn("203.0.113.20", from_now(100), from_now(200), {"tcp/443"});
  gate.learn("2001:db8:7::20", from_now(100), from_now(200));
  const LearnedAddress owned{.address = mapped("203.0.113.22"),
                             .active_until = from_now(-1),  // in its grace
                             .grace_until = from_now(200),
                             .owner = 7};
  REQUIRE(gate.plane().learned().learn(gate.scope(), std::span(&owned, 1), {}));
  const auto to = [](const char* from, const char* at, std::uint16_t port) {
    const bool six = std::string_view(from).contains(':');
    return framed(six ? ip6("2001:db8::2", at, 6, tcp(40000, port))
                      : ip4("192.0.2.2", at, 6, tcp(40000, port)));
  };
  // From outside, before.
  CHECK(gate.to(framed(ip4("203.0.113.66", "192.0.2.2", 17, udp(5000, 6000)))).verdict == kPass);
  CHECK(gate.to(framed(ip6("2001:db8:f::66", "2001:db8::2", 6, tcp(5000, 6001)))).verdict == kPass);

  // And the workload's own, which those releases noted in the same map.
  for (const char* remote : {"203.0.113.67", "2001:db8:f::67"}) {
    sluice_flow_key key{};
    key.scope = gate.scope();
    key.protocol = 17;
    const bool six = std::string_view(remote).contains(':');
    std::memcpy(key.workload, mapped(six ? "2001:db8::2" : "192.0.2.2").data(), 16);
    std::memcpy(key.remote, mapped(remote).data(), 16);
    key.workload_port_be = htons(4001);
    key.remote_port_be = htons(443);
    const sluice_flow own{
        .last_seen = from_now(-1).nanoseconds, .origin = SLUICE_FLOW_OUTBOUND, .ifindex = 0};
    REQUIRE(bpf_map_update_elem(gate.map("flows").get(), &key, &own, BPF_ANY) == 0);
  }

  const auto verdicts = [&] {
    gate.check({
        {"a net's port", to("4", "198.51.100.10", 443), SLUICE_REASON_ALLOW_RULE},
        {"another port", to("4", "198.51.100.10", 444), SLUICE_REASON_DENY_MODE},
        {"a denied host", to("4", "198.51.100.9", 443), SLUICE_REASON_DENY_RULE},
        {"an IPv6 net", to("::", "2001:db8:5::1", 22), SLUICE_REASON_ALLOW_RULE},
        {"a learned address", to("4", "203.0.113.20", 443), SLUICE_REASON_ALLOW_LEARNED},
        {"its other port", to("4", "203.0.113.20", 80), SLUICE_REASON_DENY_MODE},
        {"a learned IPv6 address", to("::", "2001:db8:7::20", 1), SLUICE_REASON_ALLOW_LEARNED},
        {"nobody's", to("4", "203.0.113.21", 443), SLUICE_REASON_DENY_MODE},
        {"a reply", framed(ip4("192.0.2.2", "203.0.113.66", 17, udp(6000, 5000))),
         SLUICE_REASON_ALLOW_REPLY},
        {"an IPv6 reply", framed(ip6("2001:db8::2", "2001:db8:f::66", 6, tcp(6001, 5000, kAck))),
         SLUICE_REASON_ALLOW_REPLY},
        {"no reply", framed(ip4("192.0.2.2", "203.0.113.66", 17, udp(6002, 5000))),
         SLUICE_REASON_DENY_MODE},
    });
    CHECK(gate.from(to("4", "11.0.0.1", 80), "host1").verdict == kDrop);     // not listed
    CHECK(gate.from(to("4", "11.0.0.0", 80), "host1").verdict == kDrop);     // denied
    CHECK(gate.from(to("4", "11.0.0.9", 80), "host1").verdict == kPass);     // allowed
    CHECK(gate.from(to("4", "11.3.169.50", 80), "host1").verdict == kPass);  // far behind
  };
  verdicts();
  const auto known = [&] {
    std::map<Address, std::tuple<std::uint64_t, std::uint64_t, std::uint32_t>> found;
    for (const auto& [address, ports] : gate.plane().learned().all(gate.scope()))
      found[address.address] = {address.active_until.nanoseconds, address.grace_until.nanoseconds,
                                address.owner};
    return found;
  };
  const auto before = known();
  REQUIRE(before.size() == 3);
  gate.reopen(as_before);
  REQUIRE(gate.plane().adopted().size() == 2);
  CHECK(digest(large) != std::array<std::uint64_t, 2>{});
  CHECK((known() == before));
  verdicts();

  // An answer to the workload's own flow opens nothing.
  CHECK(gate.to(framed(ip4("203.0.113.67", "192.0.2.2", 17, udp(443, 4001)))).verdict == kPass);
  CHECK(gate.to(framed(ip6("2001:db8:f::67", "2001:db8::2", 17, udp(443, 4001)))).verdict == kPass);
  gate.check({{"no reply", framed(ip4("192.0.2.2", "203.0.113.67", 17, udp(4001, 443))),
               SLUICE_REASON_DENY_MODE},
              {"no IPv6 reply", framed(ip6("2001:db8::2", "2001:db8:f::67", 17, udp(4001, 443))),
               SLUICE_REASON_DENY_MODE}});

  // What is noted from now on is known as well, and the tree is this release's.
  CHECK(gate.to(framed(ip4("203.0.113.66", "192.0.2.2", 17, udp(5000, 6002)))).verdict == kPass);
  gate.check({{"a reply", framed(ip4("192.0.2.2", "203.0.113.66", 17, udp(6002, 5000))),
               SLUICE_REASON_ALLOW_REPLY}});
  unsigned trees = 0;
  gate.reopen([&](const fs::path&) { ++trees; });
  CHECK(trees == 1);
  CHECK(gate.plane().adopted().size() == 2);
  CHECK(gate.reason_of(to("4", "203.0.113.20", 443)) == "ALLOW_LEARNED");
  CHECK(gate.from(to("4", "11.0.0.9", 80), "host1").verdict == kPass);
}

TEST_CASE("an unknown layout is refused, and its filter stays") {
  Gate gate;
  gate.publish({allowing("198.51.100.0/24")});
  for (const std::uint32_t layout : {1, SLUICE_LAYOUT_VERSION + 1}) {
    CAPTURE(layout);
    const Fd settings = gate.map("settings");
    const std::uint32_t zero = 0;
    sluice_settings host{};
    REQUIRE(bpf_map_lookup_elem(settings.get(), &zero, &host) == 0);
    host.layout_version = layout;
    REQUIRE(bpf_map_update_elem(settings.get(), &zero, &host, BPF_ANY) == 0);
    const auto refused = KernelDataPlane::open(gate.lab().config);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().message.contains("map layout"));
    gate.check({{"allowed", framed(ip4("192.0.2.2", "198.51.100.1", 6, tcp(1, 2))),
                 SLUICE_REASON_ALLOW_RULE},
                {"denied", framed(ip4("192.0.2.2", "203.0.113.1", 6, tcp(1, 2))),
                 SLUICE_REASON_DENY_MODE}});
  }
}

TEST_CASE("a scope is never another attachment's, also after a restart") {
  Gate gate;
  const auto target = InterfaceTarget{.name = "host1", .ifindex = Gate::ifindex("host1")};
  const auto first = gate.plane().attach(target, nullptr);
  REQUIRE(first);
  REQUIRE(gate.plane().detach(first->slot));
  gate.reopen([](const fs::path&) {});
  const auto next = gate.plane().attach(target, nullptr);
  REQUIRE(next);
  CHECK(next->scope > first->scope);
}
