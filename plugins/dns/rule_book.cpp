#include "dns/rule_book.hpp"

#include <algorithm>
#include <functional>

#include "names/rule_pattern.hpp"

namespace sluice::dns {
namespace {

// Beyond it texts are forgotten and may be reported again; a source that brings ever new nonsense
// must not fill memory.
constexpr std::size_t kMostRemembered = 4096;

class Hasher {
 public:
  void add(std::uint64_t value) {
    const auto product = static_cast<unsigned __int128>(state_ ^ value) * 0xe7037ed1a0b428dbULL;
    state_ = static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64) ^
             0xa0761d6478bd642fULL;
  }
  void add(std::string_view text) {
    add(text.size());
    add(std::hash<std::string_view>{}(text));
  }
  void add(const sdk::Address& address) {
    add(address.family);
    add(std::string_view(reinterpret_cast<const char*>(address.bytes.data()),
                         address.bytes.size()));
  }
  // All but the domain.
  void add_terms(const sdk::Rule& rule) {
    add(static_cast<std::uint64_t>(rule.action) << 1 | rule.public_suffix);
    add(rule.name);
    add(rule.expires ? static_cast<std::uint64_t>(rule.expires->time_since_epoch().count()) : 0);
    add(rule.prefix.has_value());
    if (rule.prefix) {
      add(rule.prefix->address);
      add(rule.prefix->length);
    }
    add(rule.ports.size());
    for (const sdk::PortRange& range : rule.ports)
      add(std::uint64_t{range.protocol} << 40 | std::uint64_t{range.any_port} << 32 |
          std::uint64_t{range.first} << 16 | range.last);
    add(rule.ranges.size());
    for (const sdk::Prefix& range : rule.ranges) {
      add(range.address);
      add(range.length);
    }
    add(rule.types.size());
    for (const std::uint16_t type : rule.types) add(type);
  }
  [[nodiscard]] std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0x9e3779b97f4a7c15ULL;
};

// All but the domain.
bool same_terms(const sdk::Rule& a, const sdk::Rule& b) {
  return a.action == b.action && a.prefix == b.prefix && a.ports == b.ports &&
         a.expires == b.expires && a.ranges == b.ranges && a.types == b.types &&
         a.public_suffix == b.public_suffix && a.name == b.name;
}

sdk::Rule without_domain(const sdk::Rule& rule) {
  sdk::Rule terms = rule;
  terms.domain = {};
  terms.id = {};
  return terms;
}

std::size_t heap_of(const sdk::Rule& rule) {
  return rule.ports.capacity() * sizeof(sdk::PortRange) +
         rule.ranges.capacity() * sizeof(sdk::Prefix) +
         rule.types.capacity() * sizeof(std::uint16_t) + rule.name.capacity();
}

// Into a log: what a source brought may hold anything.
std::string quoted(std::string_view text) {
  constexpr std::size_t kShown = 100;
  std::string out = "\"";
  for (const char c : text.substr(0, kShown)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f && c != '"' && c != '\\') {
      out += c;
      continue;
    }
    constexpr std::string_view kDigits = "0123456789abcdef";
    out += "\\x";
    out += kDigits[byte >> 4];
    out += kDigits[byte & 15];
  }
  return out + (text.size() > kShown ? "...\"" : "\"");
}

}  // namespace

std::uint64_t RuleSet::hash_of(std::span<const sdk::Rule> rules) {
  Hasher hasher;
  hasher.add(rules.size());
  for (const sdk::Rule& rule : rules) {
    hasher.add(rule.domain);
    hasher.add_terms(rule);
  }
  return hasher.value();
}

RuleSet::RuleSet(std::span<const sdk::Rule> rules) : hash_(hash_of(rules)) {
  std::size_t letters = 0;
  for (const sdk::Rule& rule : rules) letters += rule.domain.size();
  patterns_.reserve(letters);
  entries_.reserve(rules.size());
  DomainIndex::Builder builder;
  std::unordered_multimap<std::uint64_t, std::uint32_t> known;  // by hash of the terms
  for (const sdk::Rule& rule : rules) {
    const auto number = static_cast<std::uint32_t>(entries_.size());
    Entry entry{.pattern = static_cast<std::uint32_t>(patterns_.size()),
                .pattern_size = static_cast<std::uint32_t>(rule.domain.size()),
                .group = static_cast<std::uint32_t>(groups_.size())};
    patterns_ += rule.domain;
    // Mostly those of the rule before: one [[policy.allow]] names many domains.
    if (number != 0 && same_terms(this->rule(number - 1), rule)) {
      entry.group = entries_.back().group;
    } else {
      Hasher terms;
      terms.add_terms(rule);
      const auto [first, last] = known.equal_range(terms.value());
      const auto found = std::find_if(
          first, last, [&](const auto& one) { return same_terms(groups_[one.second], rule); });
      if (found != last) {
        entry.group = found->second;
      } else {
        known.emplace(terms.value(), entry.group);
        groups_.push_back(without_domain(rule));
      }
    }
    entries_.push_back(entry);
    read(rule, number, builder);
  }
  groups_.shrink_to_fit();
  index_ = builder.build();
  if (complaint_count_ > complaints_.size())
    complaints_.push_back("and " + std::to_string(complaint_count_ - complaints_.size()) +
                          " more domain rules are without effect");
}

void RuleSet::read(const sdk::Rule& rule, std::uint32_t number, DomainIndex::Builder& builder) {
  const auto pattern = rule_pattern({rule.domain, rule.action, rule.public_suffix});
  if (!pattern) return complain(rule, pattern.error());
  builder.add(*pattern, number, rule.action, rule.expires.value_or(kNever));
}

void RuleSet::complain(const sdk::Rule& rule, std::string_view what) {
  if (++complaint_count_ > kMostComplaints) return;
  std::string text = "domain rule " + quoted(rule.domain);
  if (!rule.name.empty()) text += " of " + quoted(rule.name);
  complaints_.push_back((text += " ").append(what) + "; the rule is without effect");
}

bool RuleSet::allows_type(const Match& match, std::uint16_t type) const {
  if (match.verdict != Verdict::allow) return false;
  if (is_default_type(type)) return true;
  return std::ranges::any_of(match.rules, [&](std::uint32_t number) {
    return std::ranges::find(rule(number).types, type) != rule(number).types.end();
  });
}

bool RuleSet::says(std::span<const sdk::Rule> rules) const {
  if (rules.size() != entries_.size()) return false;
  for (std::uint32_t number = 0; number < rules.size(); ++number)
    if (pattern(number) != rules[number].domain || !same_terms(rule(number), rules[number]))
      return false;
  return true;
}

std::size_t RuleSet::bytes() const {
  std::size_t sum = sizeof(*this) + groups_.capacity() * sizeof(sdk::Rule) +
                    entries_.capacity() * sizeof(Entry) + patterns_.capacity() + index_.bytes();
  for (const sdk::Rule& group : groups_) sum += heap_of(group);
  for (const std::string& complaint : complaints_)
    sum += sizeof(std::string) + complaint.capacity();
  return sum;
}

RuleBook::Outcome RuleBook::assign(sdk::AttachmentId id, std::span<const sdk::Rule> rules) {
  Outcome outcome;
  outcome.rules = share_or_make(rules);
  RuleSetPtr former;  // ends outside the lock
  const std::lock_guard lock(mutex_);
  PagePtr& page = pages_[id.value];
  if (!page) page = std::make_shared<Page>();
  former = page->rules.load().value;
  outcome.changed = former != outcome.rules;
  if (outcome.changed) page->rules.publish(outcome.rules);
  for (const std::string& complaint : outcome.rules->complaints()) {
    if (complained_.size() >= kMostRemembered) complained_.clear();
    if (complained_.insert(std::hash<std::string>{}(complaint)).second)
      outcome.complaints.push_back(complaint);
  }
  return outcome;
}

RuleSetPtr RuleBook::share_or_make(std::span<const sdk::Rule> rules) {
  const std::uint64_t hash = RuleSet::hash_of(rules);
  const auto find = [&]() -> RuleSetPtr {
    const auto [first, last] = sets_.equal_range(hash);
    for (auto one = first; one != last; ++one)
      if (auto set = one->second.lock(); set && set->says(rules)) return set;
    return nullptr;
  };
  {
    const std::lock_guard lock(mutex_);
    if (auto set = find()) return set;
  }
  // Made outside the lock: 100,000 rules take a tenth of a second, and readers new to an attachment
  // wait for the lock.
  auto made = std::make_shared<const RuleSet>(rules);
  const std::lock_guard lock(mutex_);
  if (auto set = find()) return set;
  sets_.emplace(hash, made);
  if (sets_.size() > forget_at_) forget_unused();
  return made;
}

void RuleBook::forget_unused() {
  std::erase_if(sets_, [](const auto& one) { return one.second.expired(); });
  forget_at_ = 64 + 2 * sets_.size();
}

void RuleBook::remove(sdk::AttachmentId id) {
  PagePtr page;
  {
    const std::lock_guard lock(mutex_);
    const auto found = pages_.find(id.value);
    if (found == pages_.end()) return;
    page = std::move(found->second);
    pages_.erase(found);
  }
  page->gone.store(true, std::memory_order_release);
  page->rules.publish(nullptr);
}

RuleSetPtr RuleBook::rules(sdk::AttachmentId id) const {
  const PagePtr of = page(id);
  return of ? of->rules.load().value : nullptr;
}

RuleBook::PagePtr RuleBook::page(sdk::AttachmentId id) const {
  const std::lock_guard lock(mutex_);
  const auto found = pages_.find(id.value);
  return found == pages_.end() ? nullptr : found->second;
}

RuleBook::Size RuleBook::size() const {
  const std::lock_guard lock(mutex_);
  Size size{.attachments = pages_.size()};
  for (const auto& [hash, weak] : sets_)
    if (const auto set = weak.lock()) {
      ++size.sets;
      size.bytes += set->bytes();
    }
  return size;
}

RuleBook::Reader::Seen* RuleBook::Reader::find(sdk::AttachmentId id) {
  auto found = seen_.find(id.value);
  // An id is never given again, but rules may be removed and assigned anew.
  if (found != seen_.end() && found->second.page->gone.load(std::memory_order_acquire)) {
    seen_.erase(found);
    found = seen_.end();
  }
  if (found != seen_.end()) return &found->second;
  const PagePtr page = book_->page(id);
  if (!page) return nullptr;
  return &seen_.emplace(id.value, Seen{page, Published<RuleSet>::Reader(page->rules)})
              .first->second;
}

const RuleSet* RuleBook::Reader::get(sdk::AttachmentId id) {
  Seen* seen = find(id);
  return seen == nullptr ? nullptr : seen->reader.get();
}

RuleSetPtr RuleBook::Reader::share(sdk::AttachmentId id) {
  Seen* seen = find(id);
  if (seen == nullptr || seen->reader.get() == nullptr) return nullptr;
  return seen->reader.pointer();
}

void RuleBook::Reader::sweep() {
  std::erase_if(
      seen_, [](const auto& one) { return one.second.page->gone.load(std::memory_order_acquire); });
  for (auto& [id, seen] : seen_) (void)seen.reader.get();
}

}  // namespace sluice::dns
