#include "attachments/opening.hpp"

#include <algorithm>
#include <string_view>

namespace sluice {
namespace {

// FNV-1a over text, as no hash of the library is the same in the next release.
class Tag {
 public:
  void add(std::string_view text) {
    for (const unsigned char byte : text) step(byte);
    step(0);
  }
  [[nodiscard]] std::uint32_t value() const {
    const auto folded = static_cast<std::uint32_t>(state_ ^ (state_ >> 32)) & ~kSeveralOwners;
    return folded != 0 ? folded : 1;
  }

 private:
  void step(unsigned char byte) { state_ = (state_ ^ byte) * 0x100000001b3ull; }
  std::uint64_t state_ = 0xcbf29ce484222325ull;
};

}  // namespace

Opening Opening::of(const Rule& rule) {
  Opening opening;
  opening.domain = rule.domain;
  opening.ports = rule.ports;
  opening.ranges = rule.ranges;
  opening.public_suffix = rule.public_suffix;
  std::ranges::sort(opening.ports);
  std::ranges::sort(opening.ranges);
  Tag tag;
  tag.add("name");
  tag.add(opening.domain);
  for (const auto& range : opening.ports) tag.add(range.text());
  for (const auto& range : opening.ranges) tag.add(range.text());
  tag.add(opening.public_suffix ? "covers a public suffix" : "");
  opening.tag = tag.value();
  return opening;
}

Opening Opening::decided(const std::string& decider, std::vector<PortRange> ports) {
  Opening opening;
  opening.decider = decider;
  opening.ports = std::move(ports);
  std::ranges::sort(opening.ports);
  Tag tag;
  tag.add("decided");
  tag.add(decider);
  opening.tag = tag.value();
  return opening;
}

}  // namespace sluice
