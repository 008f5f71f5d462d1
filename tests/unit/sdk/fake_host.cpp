// FakeHost keeps the daemon's rules, so that what a plugin's own tests allow, the daemon allows.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <unistd.h>
#include <sluice/fake_host.hpp>

using namespace sluice;
using namespace std::chrono_literals;

namespace {

struct Worker : Plugin, Discovery, PolicySource, Observer {
  static constexpr About about{"worker", "1.0", "does as the test says"};
  static constexpr std::array options{
      Option::string_list("match").required(),
      Option::duration("interval").defaults_to("\"30s\""),
      Option::integer("count").defaults_to("300"),
      Option::boolean("flag").defaults_to("true"),
      Option::string_table("labels").defaults_to("{ a = \"1\", \"b c\" = '2' }"),
      Option::string("path"),
  };
  explicit Worker(const Config& given) : config(given) {}
  void on_timer(std::uint64_t id) override { timers.emplace_back(id, now()); }
  void on_fd(int fd, std::uint32_t) override { fds.push_back(fd); }
  void on_wake(std::uint64_t token) override {
    if (token == 13) throw std::runtime_error("unlucky");
    tokens.push_back(token);
  }
  void attachment_added(const AttachmentInfo& info) override { added.push_back(info.id.value); }
  Config config;
  std::vector<std::pair<std::uint64_t, Time>> timers;
  std::vector<int> fds;
  std::vector<std::uint64_t> tokens, added;
};

struct Early : Plugin, Discovery {
  static constexpr About about{"early", "1.0", "asks in its constructor"};
  explicit Early(const Config&) { listed(); }
};

// A resolver whose work is done by a thread of its own, a decider and an answer source.
struct Names : Plugin, Resolver, Decider, AnswerSource, Observer {
  static constexpr About about{"names", "1.0", "does as the test says"};
  explicit Names(const Config&) {}
  void domain_rules(AttachmentId, const std::vector<Rule>& given) override { rules = given; }
  void decided(std::uint64_t id, const Decision& decision) override {
    heard.emplace_back(id, decision);
  }
  void answer_pushed(std::uint64_t id, const Answer& answer) override {
    if (answer.name == "wait.example") return;
    pushed(id, answer.addresses.empty() ? EACCES : 0, answer.name);
  }
  void decide(const Query& query) override { questions.push_back(query); }
  void queries(std::span<const QueryReport> reports) override {
    for (const auto& report : reports) observed.emplace_back(report.name);
  }
  using Decider::decided;
  using Resolver::decided;
  std::vector<Rule> rules;
  std::vector<std::pair<std::uint64_t, Decision>> heard;
  std::vector<Query> questions;
  std::vector<std::string> observed;
};

Worker& made(FakeHost& host) {
  host.configure("match", std::vector<std::string>{"tap*"});
  auto& worker = host.create<Worker>();
  host.start();
  return worker;
}
int code_of(const std::function<void()>& call) {
  try {
    call();
    return 0;
  } catch (const Error& error) {
    return error.code();
  }
}

}  // namespace

TEST_CASE("options come typed, configured or defaulted") {
  FakeHost host;
  const auto& config = made(host).config;
  CHECK(config.get<std::vector<std::string>>("match") == std::vector<std::string>{"tap*"});
  CHECK(config.get<std::chrono::seconds>("interval") == 30s);
  CHECK(config.get<int>("count") == 300);
  CHECK(config.get<bool>("flag"));
  CHECK(config.get<Labels>("labels") == Labels{{"a", "1"}, {"b c", "2"}});
  CHECK_FALSE(config.has("path"));
  CHECK_FALSE(config.find<std::string>("path").has_value());
  CHECK(config.get_or<std::string>("path", "x") == "x");
  CHECK(code_of([&] { (void)config.get<std::string>("path"); }) == EINVAL);
  CHECK(code_of([&] { (void)config.get<std::uint8_t>("count"); }) == ERANGE);
  CHECK(code_of([&] { (void)config.get<std::string>("count"); }) == EINVAL);
  CHECK(code_of([&] { (void)config.get<int>("undeclared"); }) == EINVAL);
}

TEST_CASE("options that do not fit their declaration are refused before the constructor") {
  FakeHost host;
  CHECK(code_of([&] { host.create<Worker>(); }) == EINVAL);  // match is required
  host.configure("match", "tap*");
  CHECK(code_of([&] { host.create<Worker>(); }) == EINVAL);  // a string, not a list
  host.configure_toml("match", "[\"tap*\"]");
  host.configure("nonsense", 1);
  CHECK(code_of([&] { host.create<Worker>(); }) == EINVAL);
  host.unconfigure("nonsense");
  CHECK(code_of([&] { host.create<Worker>(); }) == 0);
}

TEST_CASE("timers fire when the clock is moved, in order and each at its time") {
  FakeHost host;
  auto& worker = made(host);
  const auto start = host.now();
  worker.set_timer(1, 3s);
  worker.set_timer(2, 1s);
  worker.set_timer(3, 2s);
  worker.cancel_timer(3);
  worker.set_timer(1, 5s);
  host.advance(4s);
  REQUIRE(worker.timers.size() == 1);
  CHECK(worker.timers[0] == std::pair<std::uint64_t, Time>(2, start + 1s));
  host.advance(1s);
  REQUIRE(worker.timers.size() == 2);
  CHECK(worker.timers[1].second == start + 5s);
}

TEST_CASE("descriptors are called when they are ready") {
  FakeHost host;
  auto& worker = made(host);
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  worker.watch(ends[0]);
  CHECK(host.run_ready_fds() == 0);
  REQUIRE(::write(ends[1], "x", 1) == 1);
  CHECK(host.run_ready_fds() == 1);
  CHECK(worker.fds == std::vector<int>{ends[0]});
  worker.unwatch(ends[0]);
  CHECK(code_of([&] { worker.unwatch(ends[0]); }) == ENOENT);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_CASE("a wake from another thread reaches the strand; other services refuse that thread") {
  FakeHost host;
  auto& worker = made(host);
  int code = 0;
  std::thread([&] {
    worker.wake(5);
    worker.wake(5);
    code = code_of([&] { worker.listed(); });
  }).join();
  CHECK(code == EPERM);
  CHECK(host.run_wakes(1s) == 1);
  CHECK(worker.tokens == std::vector<std::uint64_t>{5});
}

TEST_CASE("services are refused in the constructor and after stop") {
  FakeHost early;
  CHECK(code_of([&] { early.create<Early>(); }) == EPERM);
  FakeHost host;
  auto& worker = made(host);
  host.stop();
  CHECK(code_of([&] { worker.listed(); }) == ESHUTDOWN);
  CHECK_FALSE(worker.wake(1));
}

TEST_CASE("an event that throws is the instance's failure") {
  FakeHost host;
  auto& worker = made(host);
  worker.wake(13);
  host.run_wakes();
  CHECK(host.failure() == "on_wake threw: unlucky");
}

TEST_CASE("attachments are kept as the core keeps them") {
  FakeHost host;
  auto& worker = made(host);
  const InterfaceTarget tap{.name = "tap0", .ifindex = 7};
  const auto id = worker.attach(tap, {{"a", "1"}});
  CHECK(worker.attach(tap, {{"a", "2"}}) == id);
  CHECK(host.attachments().at(id).labels == Labels{{"a", "2"}});
  worker.relabel(id, {});
  worker.detach(id, "gone");
  CHECK(code_of([&] { worker.detach(id, "again"); }) == ENOENT);
  CHECK(host.calls() == std::vector<std::string>{"attach tap0", "attach tap0", "relabel 1",
                                                 "detach 1 (gone)", "detach 1 (again)"});
}

TEST_CASE("a host that refuses says so with code, message and culprit") {
  FakeHost host;
  auto& worker = made(host);
  AttachmentInfo info;
  info.id = {7};
  host.add_attachment(info);
  host.refuse("replace_layer", E2BIG, "too many rules", 3);
  try {
    worker.replace_layer(info.id, {});
    FAIL("must throw");
  } catch (const Error& error) {
    CHECK(error.code() == E2BIG);
    CHECK(error.message() == "too many rules");
    CHECK(error.rule_index() == 3);
  }
  CHECK(host.layers().empty());
  host.allow("replace_layer");
  CHECK(worker.replace_layer(info.id, {.mode = Mode::allowlist}).generation == 1);

  host.refuse("replace_layers", EINVAL, "bad", 0, 1);
  const LayerChange changes[] = {{info.id, {}}, {info.id, {}}};
  try {
    worker.replace_layers(changes);
    FAIL("must throw");
  } catch (const Error& error) {
    CHECK(error.layer_index() == 1);
  }
  host.refuse_times(2, "attach", ENODEV);
  const InterfaceTarget tap{.name = "tap0", .ifindex = 7};
  CHECK(code_of([&] { (void)worker.attach(tap, {}); }) == ENODEV);
  CHECK(code_of([&] { (void)worker.attach(tap, {}); }) == ENODEV);
  CHECK(code_of([&] { (void)worker.attach(tap, {}); }) == 0);
}

TEST_CASE("a delta applies to the generation it was made for") {
  FakeHost host;
  auto& worker = made(host);
  AttachmentInfo info;
  info.id = {7};
  host.add_attachment(info);
  const Rule one{.action = Action::allow, .domain = "one.example"},
      two{.action = Action::allow, .domain = "two.example"};
  const auto first = worker.update_layer(info.id, 0, std::span(&one, 1), {});
  const auto second =
      worker.update_layer(info.id, first.generation, std::span(&two, 1), std::span(&one, 1));
  CHECK(second.generation == first.generation + 1);
  CHECK(host.layers().at(info.id).rules == std::vector<Rule>{two});
  CHECK(code_of([&] { worker.update_layer(info.id, first.generation, {}, {}); }) == ESTALE);
}

TEST_CASE(
    "an attachment that was there before the start is told at the start, and anew after a resync") {
  FakeHost host;
  host.configure("match", std::vector<std::string>{});
  auto& worker = host.create<Worker>();
  AttachmentInfo info;
  info.id = {7};
  host.add_attachment(info);
  CHECK(worker.added.empty());
  host.start();
  host.resync();
  CHECK(worker.added == std::vector<std::uint64_t>{7, 7});
  CHECK(worker.list().size() == 1);
  host.set_counters(info.id, {.denied_packets = 5});
  CHECK(worker.counters(info.id).denied_packets == 5);
}

TEST_CASE("a resolver's threads learn, ask, report; the test sees it and refuses it") {
  FakeHost host;
  auto& names = host.create<Names>();
  host.start();
  const auto address = Address::parse("192.0.2.1");
  bool was_empty = false;
  host.on_learn([&](const FakeHost::Learned&) { was_empty = host.learned().empty(); });
  int refused = 0;
  std::thread worker([&] {
    const Grant by_rule{.rule = 2, .addresses = std::span(&address, 1), .ttl = 60s, .grace = 30s};
    names.learn({7}, "a.example", by_rule);
    const PortRange web{6, false, 443, 443};
    const std::array<std::string_view, 2> chain{"a.example", "b.example"};
    const std::array both{by_rule, Grant{.addresses = std::span(&address, 1),
                                         .ttl = 60s,
                                         .grace = 30s,
                                         .ports = std::span(&web, 1)}};
    names.learn({7}, chain, both);
    CHECK(names.ask({.id = 5, .attachment = {7}, .name = "a.example", .type = 1}, Time(9s)));
    const QueryReport report{.name = "a.example", .rule = "*.example"};
    names.report(std::span(&report, 1));
    host.refuse("learn", ENOSPC, "full");
    refused = code_of([&] { names.learn({7}, chain, both); });
    names.wake(1);
  });
  CHECK(host.wait_until([&] { return host.reports().size() == 1; }));
  worker.join();
  CHECK(refused == ENOSPC);
  REQUIRE(host.learned().size() == 3);  // the refused push is not there, not even in part
  CHECK_FALSE(was_empty);               // the second look saw the first learned
  CHECK(host.learned()[0].rule == 2);
  CHECK(host.learned()[0].names == std::vector<std::string>{"a.example"});
  CHECK(host.learned()[1].push == host.learned()[2].push);
  CHECK(host.learned()[2].rule == SLUICE_NO_RULE);
  CHECK(host.learned()[2].ports == std::vector<PortRange>{{6, false, 443, 443}});
  CHECK(host.learned()[2].names == std::vector<std::string>{"a.example", "b.example"});
  REQUIRE(host.asked().size() == 1);
  CHECK(host.asked()[0].query.name == "a.example");
  CHECK(host.asked()[0].deadline == Time(9s));
  CHECK(host.reports()[0].get().rule == "*.example");

  host.decided(5, {.action = Decision::Action::deny, .reason = "no"});
  REQUIRE(names.heard.size() == 1);
  CHECK(names.heard[0].second.reason == "no");
  host.set_decider(false);
  CHECK_FALSE(names.ask({.id = 6}, Time(9s)));
}

TEST_CASE("who asks is what the test says") {
  FakeHost host;
  auto& names = host.create<Names>();
  host.start();
  const int sockets[] = {3, 4};
  names.serve(sockets);
  CHECK(host.served() == std::vector<int>{3, 4});
  CHECK_FALSE(names.asker_of_mark(0x5d000001));
  host.set_mark(0x5d000001, {7});
  CHECK(names.asker_of_mark(0x5d000001) == AttachmentId{7});
  host.forget_mark(0x5d000001);
  CHECK_FALSE(names.asker_of_mark(0x5d000001));
  CHECK_FALSE(names.asker_of_stream(3));
  host.set_streams({8}, Endpoint{Address::parse("192.0.2.53"), 53});
  const auto asker = names.asker_of_stream(3);
  REQUIRE(asker);
  CHECK(asker->attachment == AttachmentId{8});
  CHECK(asker->asked == Endpoint{Address::parse("192.0.2.53"), 53});
}

TEST_CASE("a decider answers each question once; a push is answered by the resolver") {
  FakeHost host;
  auto& names = host.create<Names>();
  host.start();
  host.decide({.id = 3, .attachment = {7}, .name = "a.example", .type = 1});
  REQUIRE(names.questions.size() == 1);
  CHECK(names.Decider::decided(3, {.action = Decision::Action::allow}));
  CHECK_FALSE(names.Decider::decided(3, {.action = Decision::Action::deny}));
  CHECK_FALSE(names.Decider::decided(4, {}));
  CHECK(host.decisions().at(3).action == Decision::Action::allow);

  const Answer good{.attachment = {7},
                    .name = "a.example",
                    .chain = {},
                    .addresses = {{Address::parse("192.0.2.1"), 60}}};
  const auto first = host.push_answer(good);
  REQUIRE(host.push_result(first));
  CHECK(host.push_result(first)->code == 0);
  const auto second = host.push_answer({.name = "empty.example"});
  CHECK(host.push_result(second)->code == EACCES);
  CHECK(host.push_result(second)->message == "empty.example");
  const auto third = host.push_answer({.name = "wait.example"});
  CHECK_FALSE(host.push_result(third));
  CHECK(names.pushed(third, 0));
  CHECK_FALSE(names.pushed(third, 0));  // nobody waits any more

  CHECK(code_of([&] { names.push_answer(good, Time(9s)); }) == ENOENT);
  AttachmentInfo info;
  info.id = {7};
  host.add_attachment(info);
  names.push_answer(good, Time(9s));
  CHECK(host.pushed_answers().at(0).answer == good);

  const QueryReport report{.name = "seen.example"};
  host.queries(std::span(&report, 1));
  CHECK(names.observed == std::vector<std::string>{"seen.example"});
}

TEST_CASE("descriptors are kept by name, as duplicates") {
  FakeHost host;
  auto& worker = made(host);
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  CHECK_FALSE(worker.kept_fd("out"));
  CHECK(worker.keep_fd("out", ends[1]));
  ::close(ends[1]);
  const auto kept = worker.kept_fd("out");
  REQUIRE(kept);
  CHECK(::write(*kept, "x", 1) == 1);
  ::close(*kept);
  worker.drop_fd("out");
  CHECK_FALSE(worker.kept_fd("out"));
  worker.drop_fd("out");
  host.refuse("keep_fd", ENOTSUP);
  CHECK_FALSE(worker.keep_fd("out", ends[0]));
  ::close(ends[0]);
}
