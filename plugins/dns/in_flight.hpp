// Questions that are out at the upstream. The same question (name, type, DO, CD) is asked once,
// whoever waits for it; each asker is judged by itself when the answer comes.
//
//   const auto key = out.key_of(question);
//   if (auto* const same = out.find(key, question)) ...  // join its line
//   const auto index = out.take();
//   ...                                                  // ask, with `index` as the token
//   out.announce(index, key, question, origin, now);     // or give_back(index)
//   ...
//   const auto [line, asked_at] = out.end(index);        // its answer, or none, is there
#pragma once

#include <cstdint>
#include <vector>

#include "dns/cache.hpp"
#include "dns/flat_map.hpp"
#include "dns/random.hpp"
#include "dns/upstream_query.hpp"
#include "dns/waiting_room.hpp"
#include "names/name.hpp"

namespace sluice::dns {

class InFlight {
 public:
  struct Out {
    Name name;
    std::uint16_t type = 0;
    bool dnssec_ok = false, checking_disabled = false;
    std::uint64_t key = 0, asked_at = 0;  // monotonic ns
    AnswerCache::Origin origin;           // who asked first, and by what right
    Line line;

    // Lives as long as this does.
    [[nodiscard]] AnswerCache::Key cache_key() const {
      return {name, type, kClassIn, dnssec_ok, checking_disabled};
    }
  };
  // `random`: for secrets, so that nobody can aim at one chain.
  explicit InFlight(Random& random) : seed_(random.next64()), by_key_(random.next64()) {}

  [[nodiscard]] std::uint64_t key_of(const UpstreamQuestion& question) const;
  // Null: it is not out. Lives until the next take().
  [[nodiscard]] Out* find(std::uint64_t key, const UpstreamQuestion& question);

  // A place with an empty line, which find() does not see yet.
  [[nodiscard]] std::uint32_t take();
  void announce(std::uint32_t index, std::uint64_t key, const UpstreamQuestion& question,
                const AnswerCache::Origin& origin, std::uint64_t now);
  void give_back(std::uint32_t index) { free_.push_back(index); }
  // Until the next take().
  [[nodiscard]] Out& at(std::uint32_t index) { return out_[index]; }

  struct Ended {
    Line line;
    std::uint64_t asked_at = 0;
  };
  // Of one that was announced. Its place may be taken again at once.
  [[nodiscard]] Ended end(std::uint32_t index);

 private:
  std::uint64_t seed_;
  std::vector<Out> out_;
  std::vector<std::uint32_t> free_;
  FlatMap<std::uint32_t> by_key_;
};

}  // namespace sluice::dns
