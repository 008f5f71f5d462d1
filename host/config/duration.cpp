#include "config/duration.hpp"

#include <array>
#include <charconv>
#include <cstdint>

#include "config/errors.hpp"

namespace sluice {

Result<std::chrono::nanoseconds> parse_duration(std::string_view text) {
  struct Unit {
    std::string_view name;
    std::chrono::milliseconds length;
  };
  static constexpr std::array<Unit, 5> kUnits{{{"d", std::chrono::hours(24)},
                                               {"h", std::chrono::hours(1)},
                                               {"m", std::chrono::minutes(1)},
                                               {"s", std::chrono::seconds(1)},
                                               {"ms", std::chrono::milliseconds(1)}}};
  constexpr std::chrono::milliseconds kLongest = std::chrono::hours(24) * 36525;
  const auto refuse = [&] {
    return fail("{} is not a duration; write a number and a unit, such as 30s, 8h, 1h30m or 250ms",
                in_quotes(text));
  };

  std::chrono::milliseconds total{0};
  std::string_view rest = text;
  std::size_t next_unit = 0;
  if (rest.empty()) return refuse();
  while (!rest.empty()) {
    std::int64_t count = 0;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), count);
    if (error != std::errc{} || rest.front() == '-') return refuse();
    rest.remove_prefix(static_cast<std::size_t>(end - rest.data()));
    const auto name = rest.substr(0, rest.find_first_not_of("dhms"));
    while (next_unit < kUnits.size() && kUnits[next_unit].name != name) ++next_unit;
    if (next_unit == kUnits.size()) return refuse();
    const auto unit = kUnits[next_unit++].length;
    if (count > kLongest / unit) return fail("{} is longer than 100 years", in_quotes(text));
    total += unit * count;
    rest.remove_prefix(name.size());
  }
  if (total > kLongest) return fail("{} is longer than 100 years", in_quotes(text));
  if (total.count() == 0) return fail("{} is no time at all; write a longer one", in_quotes(text));
  return std::chrono::nanoseconds(total);
}

}  // namespace sluice
