#include "config/errors.hpp"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <tuple>

namespace sluice {
namespace {

// Edits from one to the other; swapped neighbours count once.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1), last(b.size() + 1), now(b.size() + 1);
  std::iota(last.begin(), last.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    now[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      now[j] = std::min({last[j] + 1, now[j - 1] + 1, replaced});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        now[j] = std::min(now[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, now);
  }
  return last[b.size()];
}

}  // namespace

std::string ConfigError::message() const {
  std::string out = file;
  if (line != 0) out += fmt::format(":{}", line);
  if (line != 0 && column != 0) out += fmt::format(":{}", column);
  out += ": " + text;
  // A file's name may hold anything; one error stays one line.
  for (char& c : out)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return out;
}

void ErrorList::add(TextPosition at, std::string text) {
  if (errors_.size() >= kShown) {
    ++hidden_;
    return;
  }
  errors_.push_back({.file = file_, .line = at.line, .column = at.column, .text = std::move(text)});
}

void ErrorList::add(ConfigErrors errors) {
  for (auto& error : errors) {
    if (errors_.size() >= kShown)
      ++hidden_;
    else
      errors_.push_back(std::move(error));
  }
}

ConfigErrors ErrorList::take() {
  // The file itself first, then those it brought in; one brought in twice says the same twice.
  const auto place = [this](const ConfigError& error) {
    return std::tuple(error.file != file_, std::string_view(error.file), error.line, error.column);
  };
  std::ranges::stable_sort(errors_, {}, place);
  const auto repeated = std::ranges::unique(errors_);
  errors_.erase(repeated.begin(), repeated.end());
  if (hidden_ > 0) {
    errors_.push_back(
        {.file = file_,
         .text = fmt::format("{} more errors are not shown; mend these first", hidden_)});
    hidden_ = 0;
  }
  return std::exchange(errors_, {});
}

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kLongest = 64;
  std::string out = "\"";
  for (const char c : text.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte >= 0x7f) {
      fmt::format_to(std::back_inserter(out), "\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  out += text.size() > kLongest ? "\"..." : "\"";
  return out;
}

std::string_view nearest(std::string_view text, const std::vector<std::string_view>& known) {
  constexpr std::size_t kLongest = 64;  // the distance costs the product of the lengths
  if (text.size() > kLongest) return {};
  std::string_view best;
  std::size_t best_distance = std::max<std::size_t>(1, std::min<std::size_t>(3, text.size() / 2));
  for (const auto candidate : known) {
    const std::size_t edits = distance(text, candidate);
    const bool is_nearer = best.empty() ? edits <= best_distance : edits < best_distance;
    if (!is_nearer || edits >= candidate.size()) continue;
    best = candidate;
    best_distance = edits;
  }
  return best;
}

std::string suggestion(std::string_view text, const std::vector<std::string_view>& known) {
  if (const auto best = nearest(text, known); !best.empty())
    return fmt::format("did you mean {}?", in_quotes(best));
  std::vector<std::string_view> sorted = known;
  std::ranges::sort(sorted);
  return fmt::format("known here: {}", fmt::join(sorted, ", "));
}

}  // namespace sluice
