#include "dns/trimmer.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "dns/message.hpp"
#include "dns/patch.hpp"
#include "dns/rewrite.hpp"

namespace sluice::dns {
namespace {

constexpr std::size_t kMostOffsets = 16'384;  // records of the largest message there can be

std::string_view says_rcode(std::uint16_t rcode) {
  switch (rcode) {
    case 1:
      return "the upstream answered FORMERR";
    case 2:
      return "the upstream answered SERVFAIL";
    case 4:
      return "the upstream answered NOTIMP";
    case 5:
      return "the upstream answered REFUSED";
    default:
      return "the upstream answered with an error";
  }
}

}  // namespace

Trimmer::Trimmer()
    : grants_(kMostGrants), answer_(grants_), message_(65'536), offsets_(kMostOffsets) {}

std::expected<Trimmer::Kept, std::string_view> Trimmer::keep(Bytes response, bool dnssec_ok,
                                                             const Limits& limits) {
  const auto view = MessageView::parse(response);
  if (!view) return std::unexpected(describe(view.error()));
  if (view->rcode() != static_cast<std::uint16_t>(Rcode::noerror) &&
      view->rcode() != static_cast<std::uint16_t>(Rcode::nxdomain))
    return std::unexpected(says_rcode(view->rcode()));
  if (const auto read = answer_.read(*view); !read) return std::unexpected(describe(read.error()));

  CachedAnswer kept;
  kept.kind =
      answer_.data_records() != 0 ? CachedAnswer::Kind::positive : CachedAnswer::Kind::negative;
  for (const auto& name : answer_.names()) kept.names.add(name);
  kept.chain = static_cast<std::uint16_t>(answer_.chain().size());
  kept.grants.assign(answer_.grants().begin(), answer_.grants().end());
  std::uint32_t ttl = answer_.least_ttl();
  if (kept.kind == CachedAnswer::Kind::negative)
    ttl = std::min(
        {ttl, negative_ttl(*view, answer_.chain().back()).value_or(0), limits.most_negative_ttl});

  if (answer_.has_foreign()) {
    const auto rewritten = rewrite(*view, answer_, message_);
    if (rewritten.size == 0) return std::unexpected("the upstream's answer does not read");
    kept.message.assign(message_.begin(),
                        message_.begin() + static_cast<std::ptrdiff_t>(rewritten.size));
  } else {
    kept.message.assign(response.begin(), response.end());
    const auto copy = MessageView::parse(kept.message);
    const bool bare = kept.kind == CachedAnswer::Kind::positive && !dnssec_ok;
    kept.message.resize(bare ? strip_to_answer(*copy, kept.message)
                             : strip_additional(*copy, kept.message));
  }
  const auto final_view = MessageView::parse(kept.message);
  const auto count = final_view ? find_ttls(*final_view, offsets_) : std::nullopt;
  if (!count) return std::unexpected("the upstream's answer has too many records");
  kept.ttl_offsets.assign(offsets_.begin(), offsets_.begin() + static_cast<std::ptrdiff_t>(*count));
  ttl = std::min({ttl, least_ttl(kept.message, kept.ttl_offsets, ttl), limits.most_ttl});
  return Kept{.answer = std::move(kept), .ttl = ttl};
}

std::optional<Trimmer::Remains> Trimmer::without(const CachedAnswer& answer,
                                                 std::span<const sdk::Address> refused) {
  const auto view = MessageView::parse(answer.message);
  if (!view || !answer_.read(*view)) return std::nullopt;
  for (auto& grant : answer_.grants())
    grant.refused = std::ranges::binary_search(refused, grant.address);
  const auto rewritten = rewrite(*view, answer_, message_);
  if (rewritten.size == 0) return std::nullopt;
  if (rewritten.data_records == 0) return Remains{};
  const Bytes message = Bytes(message_).first(rewritten.size);
  const auto rewritten_view = MessageView::parse(message);
  const auto count = rewritten_view ? find_ttls(*rewritten_view, offsets_) : std::nullopt;
  if (!count) return std::nullopt;
  return Remains{.data_records = rewritten.data_records,
                 .message = message,
                 .ttl_offsets = std::span(offsets_).first(*count)};
}

}  // namespace sluice::dns
