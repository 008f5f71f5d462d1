// The steps that a question goes through on its way, one by one, hot in the cache of one core. The
// sums matter: a hit is question + copy and patch, a miss is question + upstream query + answer +
// patch.
#include <benchmark/benchmark.h>

#include <cstring>

#include "dns/answer.hpp"
#include "dns/patch.hpp"
#include "dns/respond.hpp"
#include "dns/rewrite.hpp"
#include "dns/upstream_query.hpp"
#include "unit/dns/packets.hpp"

using namespace sluice::dns;
using namespace dns_test;
namespace type = sluice::dns::type;

namespace {

const Packet kQuery = Build(0x0100).question("Files.PythonHosted.org", type::a).opt(1232).done();

// One CNAME and three addresses: four records.
const Packet kResponse =
    Build()
        .compress()
        .question("files.pythonhosted.org", type::a)
        .link("files.pythonhosted.org", type::cname, 300, "dualstack.python.map.fastly.net")
        .answer("dualstack.python.map.fastly.net", type::a, 30, v4("192.0.2.1"))
        .answer("dualstack.python.map.fastly.net", type::a, 30, v4("192.0.2.2"))
        .answer("dualstack.python.map.fastly.net", type::a, 30, v4("192.0.2.3"))
        .opt(1232)
        .done();

Packet thousand() {
  Build build;
  build.compress().question("www.example", type::a);
  for (unsigned i = 0; i < 1000; ++i)
    build.answer("www.example", type::a, 60, four(0xc6120000u + i));
  return build.done();
}

std::vector<Grant> storage(kMostGrants);

void question(benchmark::State& state) {
  for (auto _ : state) {
    auto read = read_query(kQuery);
    benchmark::DoNotOptimize(read);
  }
}
BENCHMARK(question);

void response_frame(benchmark::State& state) {
  for (auto _ : state) {
    auto read = MessageView::parse(kResponse);
    benchmark::DoNotOptimize(read);
  }
}
BENCHMARK(response_frame);

void answer_of_4(benchmark::State& state) {
  Answer answer(storage);
  for (auto _ : state) {
    const auto message = MessageView::parse(kResponse);
    auto read = answer.read(*message);
    benchmark::DoNotOptimize(read);
  }
  if (answer.grants().size() != 3) state.SkipWithError("not what was asked for");
}
BENCHMARK(answer_of_4);

void answer_of_1000(benchmark::State& state) {
  Answer answer(storage);
  const Packet packet = thousand();
  for (auto _ : state) {
    const auto message = MessageView::parse(packet);
    auto read = answer.read(*message);
    benchmark::DoNotOptimize(read);
  }
  if (answer.grants().size() != 1000) state.SkipWithError("not what was asked for");
}
BENCHMARK(answer_of_1000);

// What costs most of what fits 64 KiB: sixteen links between names of 125 labels, and signatures
// over links that are none of them.
Packet hostile() {
  std::string deep;
  for (int i = 0; i < 123; ++i) deep += "a.";
  Build build;
  build.compress().question(deep + "q", type::a);
  std::string from = deep + "q";
  for (char c = 'a'; c < 'a' + 16; ++c) {
    const std::string to = deep + c;
    build.link(from, type::cname, 60, to);
    from = to;
  }
  const Packet signature = rrsig(type::cname, ".");
  while (build.size() < 65000) build.answer(deep + "z", type::rrsig, 60, signature);
  return build.done();
}

void answer_hostile(benchmark::State& state) {
  Answer answer(storage);
  const Packet packet = hostile();
  for (auto _ : state) {
    const auto message = MessageView::parse(packet);
    auto read = answer.read(*message);
    benchmark::DoNotOptimize(read);
  }
  if (answer.chain().size() != 17) state.SkipWithError("not what was asked for");
}
BENCHMARK(answer_hostile);

void rewrite_of_4(benchmark::State& state) {
  Answer answer(storage);
  const auto message = MessageView::parse(kResponse);
  if (!answer.read(*message)) state.SkipWithError("refused");
  answer.grants()[1].refused = true;
  Packet room(4096);
  for (auto _ : state) {
    auto done = rewrite(*message, answer, room);
    benchmark::DoNotOptimize(done);
  }
}
BENCHMARK(rewrite_of_4);

// A stored answer made the client's: copy, id, question, flags, four TTLs, OPT.
void hit_of_4(benchmark::State& state) {
  Packet stored = kResponse;
  stored.resize(strip_additional(view(stored), stored));
  std::array<std::uint16_t, 16> all;
  const auto offsets = std::span<std::uint16_t>(all).first(*find_ttls(view(stored), all));
  const auto query = view(kQuery);
  std::array<std::uint8_t, 1232> out;
  for (auto _ : state) {
    std::memcpy(out.data(), stored.data(), stored.size());
    set_id(out, query.header().id());
    bool same = set_question(Room(out).first(stored.size()), query.question().wire);
    set_client_flags(out, query.header(), false);
    age_ttls(out, offsets, 7, 86400);
    auto size = append_opt(out, stored.size(), {.dnssec_ok = query.edns().dnssec_ok});
    benchmark::DoNotOptimize(same);
    benchmark::DoNotOptimize(size);
    benchmark::ClobberMemory();
  }
}
BENCHMARK(hit_of_4);

void nxdomain(benchmark::State& state) {
  const auto query = view(kQuery);
  std::array<std::uint8_t, kReplyRoom> out;
  for (auto _ : state) {
    auto size = make_reply(query, Rcode::nxdomain,
                           {.ede = ExtendedError{ede::blocked, "no rule allows it"}}, out);
    benchmark::DoNotOptimize(size);
    benchmark::ClobberMemory();
  }
}
BENCHMARK(nxdomain);

void upstream_query(benchmark::State& state) {
  const auto query = view(kQuery);
  std::array<std::uint8_t, kUpstreamQueryRoom> out;
  const CaseBits letters{0x0123456789abcdef, 0xfedcba9876543210, 0, 0};
  for (auto _ : state) {
    auto size =
        make_upstream_query({.name = query.question().name, .type = type::a}, 7, letters, out);
    benchmark::DoNotOptimize(size);
    benchmark::ClobberMemory();
  }
}
BENCHMARK(upstream_query);

void name_hash(benchmark::State& state) {
  const Name asked = name("files.pythonhosted.org");
  for (auto _ : state) {
    auto hash = asked.hash(7);
    benchmark::DoNotOptimize(hash);
  }
}
BENCHMARK(name_hash);

}  // namespace

BENCHMARK_MAIN();
