#include "journal/window.hpp"

#include <algorithm>
#include <utility>

namespace sluice::journal {
namespace {

// Bytes that are equal for events that a reader would call the same. Texts carry their length, so
// that no name can be made to look like another with a rule.
class Identity {
 public:
  template <std::integral T>
  void add(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void add(std::string_view text) {
    add(text.size());
    bytes_ += text;
  }
  void add(const Address& address) {
    add(address.family);
    bytes_.append(reinterpret_cast<const char*>(address.bytes.data()), address.bytes.size());
  }
  [[nodiscard]] std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

std::string identity_of(const Event& event) {
  Identity identity;
  identity.add(static_cast<std::uint8_t>(event.kind));
  identity.add(event.attachment.value);
  switch (event.kind) {
    case Event::Kind::denial: {
      // Not the source: a guest can make up any number of them.
      const auto& denial = event.denial;
      identity.add(denial.audited);
      identity.add(denial.protocol);
      identity.add(denial.destination);
      identity.add(denial.destination_port);
      identity.add(denial.ethertype);
      identity.add(std::string_view(denial.reason));
      identity.add(std::string_view(denial.rule));
      break;
    }
    case Event::Kind::query:
      identity.add(event.type);
      identity.add(event.response_code);
      identity.add(event.extended_error ? int{*event.extended_error} : -1);
      identity.add(static_cast<std::uint8_t>(event.verdict));
      identity.add(event.audited);
      identity.add(event.decided);
      identity.add(event.pushed);
      identity.add(std::string_view(event.name));
      identity.add(std::string_view(event.rule));
      identity.add(std::string_view(event.reason));
      break;
    case Event::Kind::more_denials:
      break;
    case Event::Kind::more_queries:
      identity.add(static_cast<std::uint8_t>(event.verdict));
      break;
  }
  return identity.take();
}

bool is_further(const Event& event) {
  return event.kind == Event::Kind::more_denials || event.kind == Event::Kind::more_queries;
}

Event further(const Event& event) {
  Event more;
  more.kind =
      event.kind == Event::Kind::query ? Event::Kind::more_queries : Event::Kind::more_denials;
  more.attachment = event.attachment;
  more.workload = event.workload;
  more.first = event.first;
  more.last = event.last;
  more.count = event.count;
  more.verdict = event.verdict;
  return more;
}

}  // namespace

void Window::add(Event event) {
  auto identity = identity_of(event);
  if (const auto known = by_identity_.find(identity); known != by_identity_.end()) {
    auto& same = events_[known->second];
    same.count += event.count;
    same.last = std::max(same.last, event.last);
    same.first = std::min(same.first, event.first);
    same.decision_time = std::max(same.decision_time, event.decision_time);
    same.upstream_time = std::max(same.upstream_time, event.upstream_time);
    same.push_time = std::max(same.push_time, event.push_time);
    return;
  }
  if (!is_further(event)) {
    auto& distinct = distinct_[event.attachment.value];
    if (distinct >= limits_.of_workload || by_identity_.size() >= limits_.of_all)
      return add(further(event));
    distinct += 1;
  }
  by_identity_.emplace(std::move(identity), events_.size());
  events_.push_back(std::move(event));
}

std::vector<Event> Window::take() {
  by_identity_.clear();
  distinct_.clear();
  return std::exchange(events_, {});
}

}  // namespace sluice::journal
