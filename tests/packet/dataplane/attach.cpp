// The data plane on the real kernel, in a network namespace and a bpffs directory of the test's
// own: what an attach, a publish and an adoption do to real packets.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <doctest/doctest.h>
#include <linux/capability.h>
#include <sys/syscall.h>

#include "base/fd.hpp"
#include "dataplane/tc_filter.hpp"
#include "packet/dataplane/lab.hpp"
#include "packet/dataplane/policies.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

// What the unprivileged user of the README has not; of this thread, and it has it back at the end.
class WithoutSysAdmin {
 public:
  WithoutSysAdmin() {
    REQUIRE(syscall(SYS_capget, &header_, data_) == 0);
    auto less = data_[0];
    less.effective &= ~(1u << CAP_SYS_ADMIN);
    set(less);
  }
  ~WithoutSysAdmin() { set(data_[0]); }

 private:
  void set(__user_cap_data_struct first) {
    __user_cap_data_struct both[] = {first, data_[1]};
    CHECK(syscall(SYS_capset, &header_, both) == 0);
  }
  __user_cap_header_struct header_{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  __user_cap_data_struct data_[2] = {};
};

// Of the clsact filter of a device.
Fd program_of(std::uint32_t ifindex, bpf_tc_attach_point where, ClsactOwner owner) {
  bpf_tc_hook hook{};
  hook.sz = sizeof(hook);
  hook.ifindex = static_cast<int>(ifindex);
  hook.attach_point = where;
  bpf_tc_opts options{};
  options.sz = sizeof(options);
  options.handle = owner == ClsactOwner::guard ? 0x51c4 : 0x51c3;
  options.priority = owner == ClsactOwner::guard ? 2 : 1;
  REQUIRE(bpf_tc_query(&hook, &options) == 0);
  Fd program(bpf_prog_get_fd_by_id(options.prog_id));
  REQUIRE(program);
  return program;
}

// Takes the guard of a device to where an earlier release had it.
void move_guard_to_former_place(std::uint32_t ifindex) {
  const Fd program = program_of(ifindex, BPF_TC_EGRESS, ClsactOwner::guard);
  REQUIRE(attach_clsact(ifindex, Hook::egress, program.get(), ClsactOwner::attachment));
  detach_clsact(ifindex, Hook::egress, ClsactOwner::guard);
}

InterfaceTarget host0() {
  return {.name = "host0", .ifindex = Lab::ifindex("host0")};
}

KernelAttachment attach_host0(KernelDataPlane& plane, const char* allowed) {
  const auto attached = plane.attach(host0(), nullptr);
  REQUIRE(attached);
  const auto policy = compiled(allow({allowed}));
  REQUIRE(plane.publish({.slot = attached->slot, .mode = Mode::allowlist, .policy = &policy}));
  return *attached;
}

// More than the data plane's socket holds, so that what the kernel tells next is lost.
void flood_with_link_events() {
  std::string batch;
  for (int i = 0; i < 2000; ++i) batch += fmt::format("link set dev lo alias a{}\\n", i);
  REQUIRE(Lab::run("printf '" + batch + "' | ip -batch -") == 0);
}

// The guest's own end, seen from where it is.
InterfaceTarget inside(const Lab& lab) {
  return {
      .name = "guest0", .netns_path = "/run/netns/" + lab.name(), .side = Side::workload_egress};
}

}  // namespace

TEST_CASE("a new attachment drops everything until a policy is published") {
  Lab lab;
  auto plane = lab.open();
  REQUIRE(lab.ping4());
  auto attached =
      plane->attach(InterfaceTarget{.name = "host0", .ifindex = lab.ifindex("host0")}, nullptr);
  REQUIRE_MESSAGE(attached, attached.error().message);
  CHECK_FALSE(lab.ping4());
  CHECK_FALSE(lab.ping6());

  const auto policy = compiled(allow({"192.0.2.1/32", "2001:db8::1/128"}));
  PublishRequest request{.slot = attached->slot, .mode = Mode::allowlist, .policy = &policy};
  auto generation = plane->publish(request);
  REQUIRE_MESSAGE(generation, generation.error().message);
  CHECK(lab.ping4());
  CHECK(lab.ping6());

  const auto other = compiled(allow({"198.51.100.0/24"}));
  request.policy = &other;
  REQUIRE(plane->publish(request));
  CHECK_FALSE(lab.ping4());
  CHECK_FALSE(lab.ping6());

  const auto counters = plane->counters(attached->slot);
  REQUIRE(counters);
  CHECK(counters->allowed_packets > 0);
  CHECK(counters->denied_packets > 0);

  REQUIRE(plane->detach(attached->slot));
  CHECK(lab.ping4());
}

TEST_CASE("a policy stays in force without the daemon, and the next one adopts it") {
  Lab lab;
  std::uint64_t incarnation = 0;
  for (const char* mechanism : {"clsact", "tcx"}) {
    CAPTURE(mechanism);
    lab.config.tc_mechanism = mechanism;
    {
      auto plane = lab.open();
      auto attached =
          plane->attach(InterfaceTarget{.name = "host0", .ifindex = lab.ifindex("host0")}, nullptr);
      REQUIRE(attached);
      incarnation = attached->incarnation;
      const auto policy = compiled(allow({"192.0.2.1/32"}));
      REQUIRE(plane->publish({.slot = attached->slot, .mode = Mode::allowlist, .policy = &policy}));
    }
    CHECK(lab.ping4());
    CHECK_FALSE(lab.ping6());
    auto plane = lab.open();
    const auto adopted = plane->adopted();
    REQUIRE(adopted.size() == 1);
    CHECK(adopted[0].incarnation == incarnation);
    CHECK(adopted[0].mode == Mode::allowlist);
    CHECK(adopted[0].mechanism == mechanism);
    CHECK(lab.ping4());
    CHECK_FALSE(lab.ping6());
    auto claimed =
        plane->attach(InterfaceTarget{.name = "host0", .ifindex = lab.ifindex("host0")}, nullptr);
    REQUIRE(claimed);
    CHECK(claimed->incarnation == incarnation);
    CHECK(plane->adopted().empty());
    REQUIRE(plane->detach(claimed->slot));
    CHECK(lab.ping6());
  }
}

TEST_CASE("clsact at once, TCX behind it, and no packet unjudged on the way") {
  Lab lab;
  lab.config.tc_mechanism = "auto";
  auto plane = lab.open();
  if (!plane->features().tcx) return;
  auto attached =
      plane->attach(InterfaceTarget{.name = "host0", .ifindex = lab.ifindex("host0")}, nullptr);
  REQUIRE(attached);
  CHECK(attached->mechanism == "clsact");
  std::string mechanism;
  for (int i = 0; i < 100 && mechanism != "tcx"; ++i) {
    CHECK_FALSE(lab.ping4());
    plane->poll({});
    mechanism =
        plane->attach(InterfaceTarget{.name = "host0", .ifindex = lab.ifindex("host0")}, nullptr)
            ->mechanism;
  }
  CHECK(mechanism == "tcx");
  CHECK_FALSE(lab.ping4());
}

TEST_CASE("an earlier release's clsact guard is found and removed without CAP_SYS_ADMIN") {
  Lab lab;
  lab.config.tc_mechanism = "clsact";
  auto plane = lab.open();
  const auto ifindex = Lab::ifindex("host0");
  GuardSettings guarded;
  guarded.uplinks = {"host0"};
  REQUIRE(plane->set_guards(guarded));
  move_guard_to_former_place(ifindex);
  REQUIRE(has_clsact(ifindex, Hook::egress));
  const WithoutSysAdmin without;
  SUBCASE("it is no longer wanted") {
    REQUIRE(plane->set_guards({}));
  }
  SUBCASE("it has a place of its own now") {
    REQUIRE(plane->set_guards(guarded));
    CHECK(has_clsact(ifindex, Hook::egress, ClsactOwner::guard));
  }
  CHECK_FALSE(has_clsact(ifindex, Hook::egress));
}

TEST_CASE("a device is trusted by the name that it has, not by the one that it had") {
  Lab lab;
  auto plane = lab.open();
  REQUIRE(lab.run("ip link add wg0 type veth peer other0") == 0);
  GuardSettings guarded;
  guarded.uplinks = {"host0"};
  guarded.trusted = {"wg0"};
  REQUIRE(plane->set_guards(guarded));
  plane->poll({});
  const Fd map(bpf_obj_get((lab.config.bpffs / "maps-1/trusted_interfaces").c_str()));
  REQUIRE(map);
  const auto is_trusted = [&](const char* name) {
    const std::uint32_t ifindex = Lab::ifindex(name);
    std::uint32_t value = 0;
    return bpf_map_lookup_elem(map.get(), &ifindex, &value) == 0;
  };
  REQUIRE(is_trusted("wg0"));
  SUBCASE("it has another name") {
    REQUIRE(lab.run("ip link set wg0 name tap0") == 0);
    plane->poll({});
    CHECK_FALSE(is_trusted("tap0"));
  }
  SUBCASE("it went, another has its number, and nobody told") {
    flood_with_link_events();
    const auto number = fmt::format("{}", Lab::ifindex("wg0"));
    REQUIRE(lab.run("ip link del wg0; ip link add tap0 index " + number +
                    " type veth peer other1") == 0);
    plane->poll({});
    CHECK_FALSE(is_trusted("tap0"));
  }
  SUBCASE("it came later") {
    REQUIRE(lab.run("ip link set wg0 name tap0; ip link set other0 name wg0") == 0);
    plane->poll({});
    CHECK(is_trusted("wg0"));
    CHECK_FALSE(is_trusted("tap0"));
  }
  REQUIRE(plane->set_guards({}));
}

TEST_CASE("the filter of an attachment is none of the guards that go") {
  Lab lab;
  lab.config.tc_mechanism = "clsact";
  auto plane = lab.open();
  const auto ifindex = Lab::ifindex("host0");
  // On the side where a guard would be.
  InterfaceTarget target{.name = "host0", .ifindex = ifindex};
  target.side = Side::workload_egress;
  REQUIRE(plane->attach(target, nullptr));
  REQUIRE(has_clsact(ifindex, Hook::egress));
  REQUIRE(plane->set_guards({}));
  CHECK(has_clsact(ifindex, Hook::egress));
}

TEST_CASE("a device that goes frees its slot, and its ifindex means nothing any more") {
  Lab lab;
  auto plane = lab.open();
  const std::uint32_t ifindex = lab.ifindex("host0");
  auto attached = plane->attach(InterfaceTarget{.name = "host0", .ifindex = ifindex}, nullptr);
  REQUIRE(attached);
  lab.run("ip link del host0");
  std::uint32_t gone = 0;
  DataPlaneEvents events;
  events.on_target_gone = [&](std::uint32_t slot, const std::string&) { gone = slot; };
  plane->poll(events);
  CHECK(gone == attached->slot);
  auto again = plane->attach(InterfaceTarget{.name = "host0", .ifindex = ifindex}, nullptr);
  REQUIRE_FALSE(again);
  CHECK(again.error().code == ENODEV);
}

TEST_CASE("a filter stays when the one before it goes, whose namespace had the same path") {
  Lab lab;
  lab.config.tc_mechanism = "clsact";
  auto plane = lab.open();
  const auto former = plane->attach(inside(lab), nullptr);
  REQUIRE_MESSAGE(former, former.error().message);
  lab.make_guest();
  const auto attached = plane->attach(inside(lab), nullptr);
  REQUIRE_MESSAGE(attached, attached.error().message);
  REQUIRE(attached->slot != former->slot);
  REQUIRE(attached->interface->ifindex == former->interface->ifindex);
  REQUIRE(plane->detach(former->slot));
  CHECK_FALSE(lab.ping4());
}

TEST_CASE("no TCX link comes to a device whose namespace has the path of the attached one's") {
  Lab lab;
  lab.config.tc_mechanism = "auto";
  auto plane = lab.open();
  if (!plane->features().tcx) return;
  REQUIRE(plane->attach(inside(lab), nullptr));
  lab.make_guest();
  for (int i = 0; i < 12; ++i) {
    plane->poll({});
    usleep(100'000);
  }
  CHECK(lab.ping4());
}

TEST_CASE("a device that has the number of one that went is another, and closed when attached") {
  Lab lab;
  for (const char* mechanism : {"clsact", "tcx"}) {
    CAPTURE(mechanism);
    lab.config.tc_mechanism = mechanism;
    auto plane = lab.open();
    const auto former = attach_host0(*plane, "192.0.2.1/32");
    lab.make_guest(former.interface->ifindex);
    const auto attached = plane->attach(host0(), nullptr);
    REQUIRE(attached);
    REQUIRE(attached->interface->ifindex == former.interface->ifindex);
    CHECK(attached->incarnation != former.incarnation);
    CHECK_FALSE(lab.ping4());
    plane->poll({});  // hears of the former's end only now
    CHECK_FALSE(lab.ping4());
    REQUIRE(plane->detach(attached->slot));
  }
}

TEST_CASE("a device that is detached and attached again at once has its filter") {
  Lab lab;
  lab.config.tc_mechanism = "tcx";
  auto plane = lab.open();
  for (int i = 0; i < 10; ++i) {
    const auto attached = plane->attach(host0(), nullptr);
    REQUIRE_MESSAGE(attached, attached.error().message);
    REQUIRE(plane->detach(attached->slot));
  }
}

TEST_CASE("a filter that someone removed is set again, however many there are") {
  constexpr int kCrowd = 70;  // more than are looked at in one turn
  Lab lab;
  lab.config.tc_mechanism = "clsact";
  std::string batch;
  for (int i = 0; i < kCrowd; ++i)
    batch += fmt::format("link add a{0} type veth peer name b{0}\\n", i);
  REQUIRE(Lab::run("printf '" + batch + "' | ip -batch -") == 0);
  auto plane = lab.open();  // which has no word of them: lost events have all looked at
  for (int i = 0; i < kCrowd; ++i) {
    const auto name = fmt::format("a{}", i);
    REQUIRE(plane->attach(InterfaceTarget{.name = name, .ifindex = Lab::ifindex(name.c_str())},
                          nullptr));
  }
  for (const char* name : {"a0", "a69"})
    REQUIRE(lab.run(fmt::format("tc qdisc del dev {} clsact", name)) == 0);
  plane->poll({});
  CHECK(has_clsact(Lab::ifindex("a0"), Hook::ingress));
  plane->poll({});
  CHECK(has_clsact(Lab::ifindex("a69"), Hook::ingress));
}

TEST_CASE("a device whose coming nobody told is filtered, and closed when attached") {
  Lab lab;
  for (const char* mechanism : {"clsact", "tcx"}) {
    CAPTURE(mechanism);
    lab.config.tc_mechanism = mechanism;
    auto plane = lab.open();
    const auto former = attach_host0(*plane, "198.51.100.0/24");
    plane->poll({});
    flood_with_link_events();
    lab.make_guest(former.interface->ifindex);
    CHECK(lab.ping4());
    plane->poll({});
    CHECK_FALSE(lab.ping4());
    const auto attached = plane->attach(host0(), nullptr);
    REQUIRE_MESSAGE(attached, attached.error().message);
    CHECK(attached->incarnation != former.incarnation);
    CHECK(attached->mode == Mode::block_all);
    REQUIRE(plane->detach(attached->slot));
  }
}

TEST_CASE("a device that took the number of one that moved away is not adopted for it") {
  Lab lab;
  lab.make_guest(77);  // a number that is free in the guest's namespace too
  lab.config.tc_mechanism = "tcx";
  REQUIRE(lab.open()->attach(host0(), nullptr));
  REQUIRE(lab.run("ip link set host0 netns " + lab.name()) == 0);
  REQUIRE(lab.run("ip link add host0 index 77 type veth peer host1") == 0);
  CHECK(lab.open()->adopted().empty());
}

TEST_CASE(
    "links that an ended daemon made too late for another device take nothing from the slot") {
  Lab lab;
  std::uint64_t incarnation = 0;
  lab.config.tc_mechanism = "clsact";
  {
    auto plane = lab.open();
    if (!plane->features().tcx) return;
    const auto attached = plane->attach(host0(), nullptr);
    REQUIRE(attached);
    incarnation = attached->incarnation;
  }
  REQUIRE(lab.run("ip link add other0 type veth peer other1") == 0);
  const Fd program = program_of(lab.ifindex("host0"), BPF_TC_INGRESS, ClsactOwner::attachment);
  REQUIRE(attach_tcx(lab.ifindex("other0"), Hook::ingress, program.get(),
                     lab.config.bpffs / "links/1-from"));
  const auto plane = lab.open();
  const auto adopted = plane->adopted();
  REQUIRE(adopted.size() == 1);
  CHECK(adopted[0].incarnation == incarnation);
  CHECK_FALSE(lab.ping4());
}

TEST_CASE("a changed table size carries everything over to new maps") {
  Lab lab;
  {
    auto plane = lab.open();
    auto attached =
        plane->attach(InterfaceTarget{.name = "host0", .ifindex = lab.ifindex("host0")}, nullptr);
    REQUIRE(attached);
    const auto policy = compiled(allow({"192.0.2.1/32"}));
    REQUIRE(plane->publish({.slot = attached->slot, .mode = Mode::allowlist, .policy = &policy}));
  }
  lab.config.max_attachments = 300;
  lab.config.heap_kib = 2048;
  lab.config.max_flows = 4096;
  auto plane = lab.open();
  REQUIRE(plane->adopted().size() == 1);
  CHECK(lab.ping4());
  CHECK_FALSE(lab.ping6());
}

TEST_CASE("learned addresses open what they name, for their ports, until they end") {
  Lab lab;
  auto plane = lab.open();
  auto attached =
      plane->attach(InterfaceTarget{.name = "host0", .ifindex = lab.ifindex("host0")}, nullptr);
  REQUIRE(attached);
  const auto policy = compiled(allow({"198.51.100.0/24"}));
  REQUIRE(plane->publish({.slot = attached->slot, .mode = Mode::allowlist, .policy = &policy}));
  CHECK_FALSE(lab.ping4());
  LearnedAddress learned;
  learned.address = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1};
  learned.active_until = learned.grace_until = {boot_now().nanoseconds + 60'000'000'000ull};
  const PortRange tcp_only{.protocol = 6};
  REQUIRE(plane->learned().learn(attached->scope, std::span(&learned, 1), std::span(&tcp_only, 1)));
  CHECK_FALSE(lab.ping4());
  const PortRange icmp{.protocol = 1};
  REQUIRE(plane->learned().learn(attached->scope, std::span(&learned, 1), std::span(&icmp, 1)));
  CHECK(lab.ping4());
  REQUIRE(plane->learned().revoke(attached->scope, std::span(&learned.address, 1)));
  CHECK_FALSE(lab.ping4());
}
