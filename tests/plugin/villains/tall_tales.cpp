// Speaks of names through the raw tables as no honest plugin does, and says so where it is
// believed.
#include <sluice/plugin.hpp>

struct TallTales : sluice::Plugin, sluice::Resolver, sluice::Decider, sluice::AnswerSource {
  static constexpr sluice::About about{"tall_tales", "1.0", "lies about names"};
  explicit TallTales(const sluice::Config&) {}
  void domain_rules(sluice::AttachmentId, const std::vector<sluice::Rule>&) override {}
  void decide(const sluice::Query&) override {}
  void attachment_added(const sluice::AttachmentInfo& info) override {
    questions(info.id.value);
    decisions();
    answers(info.id.value);
    reports();
    sockets();
    log(sluice::LogLevel::info, "that is all");
  }

 private:
  static constexpr sluice_string kNone{nullptr, 12}, kEndless{"x", std::size_t{1} << 40},
      kName{"a.example", 9};

  void questions(std::uint64_t id) {
    const auto& r = *services_.resolver;
    expect("null query", r.ask(host(), nullptr, 1), -EINVAL);
    sluice_query query{};
    query.size = sizeof query;
    query.attachment = id;
    expect("no name", r.ask(host(), &query, 1), -EINVAL);
    query.name = kEndless;
    expect("endless name", r.ask(host(), &query, 1), -E2BIG);
    query.name = kName;
    query.attachment = 99;
    expect("nobody's query", r.ask(host(), &query, 1), -ENOENT);
    expect("no such push", r.pushed(host(), 1, 0, kName), -ENOENT);
    expect("positive result", r.pushed(host(), 1, 5, kName), -EINVAL);
    expect("null asker", r.asker_of_mark(host(), 1, nullptr), -EINVAL);
    expect("null asker", r.asker_of_stream(host(), 1, nullptr, nullptr), -EINVAL);
  }
  void decisions() {
    const auto& d = *services_.decider;
    expect("null decision", d.decided(host(), 1, nullptr), -EINVAL);
    sluice_decision_made made{};
    made.size = sizeof made;
    expect("no such query", d.decided(host(), 1, &made), -ENOENT);
    made.action = 3;
    expect("action", d.decided(host(), 1, &made), -EINVAL);
    made.action = SLUICE_DECISION_ALLOW;
    made.address_count = 1;
    expect("null addresses", d.decided(host(), 1, &made), -EINVAL);
    made.address_count = std::size_t{1} << 40;
    expect("endless addresses", d.decided(host(), 1, &made), -E2BIG);
    const sluice_address odd{5, {}, {}};
    made.addresses = &odd;
    made.address_count = 1;
    expect("family", d.decided(host(), 1, &made), -EINVAL);
    made.address_count = 0;
    made.port_count = 1;
    expect("null ports", d.decided(host(), 1, &made), -EINVAL);
    made.port_count = 0;
    const sluice_prefix crooked{4, 8, {}, {10, 1}};
    made.ranges = &crooked;
    made.range_count = 1;
    expect("host bits", d.decided(host(), 1, &made), -EINVAL);
  }
  void answers(std::uint64_t id) {
    const auto push = [&](const sluice_answer* answer) {
      sluice_applied applied{};
      applied.size = sizeof applied;
      const int code = services_.answer_source->push_answer(host(), answer, 1, &applied);
      if (applied.message[0] == 0) log(sluice::LogLevel::info, "believed: without a word");
      return code;
    };
    expect("null answer", push(nullptr), -EINVAL);
    sluice_answer answer{};
    answer.size = sizeof answer;
    answer.attachment = id;
    expect("nameless answer", push(&answer), -EINVAL);
    answer.name = kName;
    expect("to itself", push(&answer), -EDEADLK);
    answer.chain_count = 1;
    expect("null chain", push(&answer), -EINVAL);
    answer.chain = &kEndless;
    expect("endless link", push(&answer), -E2BIG);
    answer.chain_count = 0;
    answer.address_count = 1;
    expect("null addresses", push(&answer), -EINVAL);
  }
  void reports() {
    const auto& r = *services_.resolver;
    expect("null reports", r.report(host(), nullptr, 1), -EINVAL);
    expect("endless reports", r.report(host(), nullptr, std::size_t{1} << 40), -E2BIG);
    sluice_query_report report{};
    report.size = 8;
    expect("tiny report", r.report(host(), &report, 1), -EINVAL);
    report.size = sizeof report;
    report.address_count = 1;
    expect("null addresses", r.report(host(), &report, 1), -EINVAL);
  }
  void sockets() {
    const auto& r = *services_.resolver;
    expect("null sockets", r.serve(host(), nullptr, 1), -EINVAL);
    sluice_listener socket{};
    expect("sizeless socket", r.serve(host(), &socket, 1), -EINVAL);
    expect("endless sockets", r.serve(host(), &socket, std::size_t{1} << 40), -E2BIG);
    expect("name of a descriptor", services_.common->keep_fd(host(), kNone, 1), -EINVAL);
    expect("name of a descriptor", services_.common->kept_fd(host(), {"a/b", 3}), -EINVAL);
  }
  void expect(const char* lie, int code, int wanted) {
    if (code != wanted)
      log(sluice::LogLevel::info, std::string("believed: ") + lie + ": " + std::to_string(code));
  }
  [[nodiscard]] sluice_host* host() const { return services_.host; }
  sluice_services services_ = sluice::sdk::detail::bound_services();
};
SLUICE_PLUGIN(TallTales)
