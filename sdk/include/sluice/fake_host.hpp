// SPDX-License-Identifier: Apache-2.0
// A host in memory, to test a plugin without a daemon, without root and without waiting:
//
//   sluice::FakeHost host;
//   host.configure("match", std::vector<std::string>{"tap*"});
//   auto& plugin = host.create<Interfaces>();
//   host.refuse("attach", ENODEV, "tap0: it is gone");
//   host.start();
//   host.advance(std::chrono::seconds(30));            // timers fire on the way
//   CHECK(host.attachments().empty());
//
// It speaks to the plugin through the same C table as the daemon and keeps the same rules: [strand]
// services only from the thread that made the FakeHost, none in the constructor, none after stop.
// All its functions belong to that thread; the plugin's [any] services may come from any.
#pragma once

#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <sluice/plugin.hpp>

#include <atomic>
#include <charconv>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>

namespace sluice::sdk {

class FakeHost {
 public:
  struct Attached {
    Target target;
    Labels labels;
    std::uint64_t generation = 1;
  };
  struct Line {
    LogLevel level = LogLevel::info;
    std::string text;
  };
  // A grant of a push. Pushes are taken or refused whole.
  struct Learned {
    AttachmentId attachment;
    std::vector<Address> addresses;
    std::chrono::nanoseconds ttl{}, grace{};
    std::uint32_t rule = 0;            // SLUICE_NO_RULE: by a decision
    std::vector<PortRange> ports{};    // of a decision
    std::vector<std::string> names{};  // of the push
    std::size_t push = 0;              // which one: grants of one push have the same number
  };
  struct Asked {
    Query query;
    Time deadline;
  };
  // A report with what it borrows.
  class Reported {
   public:
    explicit Reported(const QueryReport& report)
        : name_(report.name),
          rule_(report.rule),
          reason_(report.reason),
          upstream_(report.upstream),
          addresses_(report.addresses.begin(), report.addresses.end()),
          report_(report) {}
    [[nodiscard]] QueryReport get() const {
      auto report = report_;
      report.name = name_;
      report.rule = rule_;
      report.reason = reason_;
      report.upstream = upstream_;
      report.addresses = addresses_;
      return report;
    }

   private:
    std::string name_, rule_, reason_, upstream_;
    std::vector<Address> addresses_;
    QueryReport report_;
  };
  struct PushResult {
    int code = 0;  // 0, or a positive errno
    std::string message;
  };
  struct PushedAnswer {
    Answer answer;
    Time deadline;
  };

  explicit FakeHost(std::string instance = "test") : instance_(std::move(instance)) {
    services_ = {.size = sizeof services_,
                 .abi_minor = SLUICE_ABI_MINOR,
                 .host = reinterpret_cast<sluice_host*>(this),
                 .common = &common_table(),
                 .discovery = nullptr,
                 .policy = nullptr,
                 .resolver = nullptr,
                 .observer = nullptr,
                 .decider = nullptr,
                 .answer_source = nullptr};
  }
  FakeHost(const FakeHost&) = delete;
  FakeHost& operator=(const FakeHost&) = delete;
  ~FakeHost() {
    if (self_ != nullptr) {
      stop();
      destroy();
    }
    for (const auto& [name, fd] : kept_fds_) ::close(fd);
  }

  // ---- before create() ----

  // A configured option. What is not configured has its declared default.
  void configure(const std::string& path, const char* value) {
    configure(path, std::string(value));
  }
  void configure(const std::string& path, std::string value) {
    auto& option = option_of(path, OptionType::string);
    option.string = std::move(value);
  }
  void configure(const std::string& path, bool value) {
    option_of(path, OptionType::boolean).boolean = value;
  }
  template <std::integral T>
  requires(!std::same_as<T, bool>) void configure(const std::string& path, T value) {
    option_of(path, OptionType::integer).integer = static_cast<std::int64_t>(value);
  }
  template <typename R, typename P>
  void configure(const std::string& path, std::chrono::duration<R, P> value) {
    option_of(path, OptionType::duration).integer = std::chrono::nanoseconds(value).count();
  }
  void configure(const std::string& path, std::vector<std::string> value) {
    option_of(path, OptionType::string_list).items = std::move(value);
  }
  void configure(const std::string& path, const Labels& value) {
    auto& option = option_of(path, OptionType::string_table);
    option.items.clear();
    for (const auto& [key, item] : value) {
      option.items.push_back(key);
      option.items.push_back(item);
    }
  }
  // The same as TOML text, typed by the declaration: configure_toml("match", "[\"tap*\"]").
  void configure_toml(const std::string& path, std::string text) {
    options_.erase(path);
    toml_options_[path] = std::move(text);
  }
  void unconfigure(const std::string& path) {
    options_.erase(path);
    toml_options_.erase(path);
  }
  void set_config_directory(std::string path) { config_directory_ = std::move(path); }
  void set_state_directory(std::string path) { state_directory_ = std::move(path); }

  // Throws Error(EINVAL) unless `toml` is a value of `type`, as far as this host reads TOML.
  static void parse_value(OptionType type, std::string_view toml) { (void)default_of(type, toml); }

  // ---- the plugin's life ----

  // Throws Error: options that do not match their declaration, or what the constructor threw.
  template <typename Class>
  Class& create() {
    create(detail::PluginTable<Class>::value);
    return *static_cast<Class*>(self_);
  }
  // The same for a table that came another way (a loaded library). `table` outlives this.
  void create(const sluice_plugin& table) {
    if (self_ != nullptr)
      throw Error(EEXIST, "this FakeHost has a plugin already; make another FakeHost");
    table_ = detail::known_part(&table);
    services_.discovery = holds(SLUICE_ROLE_DISCOVERY) ? &discovery_table() : nullptr;
    services_.policy = holds(SLUICE_ROLE_POLICY_SOURCE) ? &policy_table() : nullptr;
    services_.resolver = holds(SLUICE_ROLE_RESOLVER) ? &resolver_table() : nullptr;
    services_.observer = holds(SLUICE_ROLE_OBSERVER) ? &observer_table() : nullptr;
    services_.decider = holds(SLUICE_ROLE_DECIDER) ? &decider_table() : nullptr;
    services_.answer_source = holds(SLUICE_ROLE_ANSWER_SOURCE) ? &answer_source_table() : nullptr;
    const RawOptions raw(*this);
    void* self = nullptr;
    Message message;
    closed_ = false;
    message.require(table_.create(&services_, raw.config(), &self, message.data(), message.size()),
                    "create");
    self_ = self;
  }
  void start() {
    Message message;
    const int result = table_.start(self_, message.data(), message.size());
    started_ = result >= 0;
    message.require(result, "start");
    for (const auto& [id, info] : known_) event("attachment_added", table_.attachment_added, info);
  }
  void stop() {
    if (started_) table_.stop(self_);
    started_ = false;
    closed_ = true;
    timers_.clear();
    fds_.clear();
  }
  void destroy() {
    closed_ = true;
    table_.destroy(std::exchange(self_, nullptr));
  }
  // False: the plugin asks for a restart. Throws what it refuses with.
  bool reconfigure() {
    if (table_.reconfigure == nullptr) return false;
    const RawOptions raw(*this);
    Message message;
    const int result = table_.reconfigure(self_, raw.config(), message.data(), message.size());
    if (result == -ENOTSUP) return false;
    message.require(result, "reconfigure");
    return true;
  }
  [[nodiscard]] std::vector<std::string> check() {
    std::vector<std::string> errors;
    if (table_.check != nullptr)
      table_.check(
          self_,
          [](void* context, sluice_string text) {
            static_cast<std::vector<std::string>*>(context)->push_back(detail::copy(text));
          },
          &errors);
    return errors;
  }

  // ---- time, fds, wakes: by hand ----

  [[nodiscard]] Time now() const { return Time(std::chrono::nanoseconds(clock_.load())); }
  // Moves the clock; timers that fall due fire in order, each at its time.
  void advance(std::chrono::nanoseconds by) {
    const auto until = clock_.load() + by.count();
    for (;;) {
      auto next = timers_.end();
      for (auto at = timers_.begin(); at != timers_.end(); ++at)
        if (next == timers_.end() || at->second < next->second) next = at;
      if (next == timers_.end() || next->second > until) break;
      clock_ = std::max(clock_.load(), next->second);
      const auto id = next->first;
      timers_.erase(next);
      event("on_timer", table_.on_timer, id);
    }
    clock_ = until;
  }
  // When each armed timer is due.
  [[nodiscard]] std::map<std::uint64_t, Time> timers() const {
    std::map<std::uint64_t, Time> all;
    for (const auto& [id, due] : timers_) all.emplace(id, Time(std::chrono::nanoseconds(due)));
    return all;
  }
  [[nodiscard]] const std::map<int, std::uint32_t>& watched() const { return fds_; }
  // Polls what is watched, waiting at most `patience`, and calls on_fd once for each that is ready.
  // Their number.
  int run_ready_fds(std::chrono::milliseconds patience = {}) {
    std::vector<pollfd> polled;
    for (const auto& [fd, events] : fds_) polled.push_back({fd, static_cast<short>(events), 0});
    int ready = ::poll(polled.data(), polled.size(), static_cast<int>(patience.count()));
    if (ready <= 0) return 0;
    for (const auto& one : polled)
      if (one.revents != 0 && fds_.contains(one.fd))
        event("on_fd", table_.on_fd, one.fd, static_cast<std::uint32_t>(one.revents));
    return ready;
  }
  void deliver_fd(int fd, std::uint32_t events) { event("on_fd", table_.on_fd, fd, events); }
  // Calls on_wake for each token that is pending, waiting at most `patience` for the first. Their
  // number.
  int run_wakes(std::chrono::milliseconds patience = {}) {
    std::deque<std::uint64_t> tokens;
    {
      std::unique_lock lock(mutex_);
      woken_.wait_for(lock, patience, [&] { return !tokens_.empty(); });
      tokens.swap(tokens_);
    }
    for (const auto token : tokens) event("on_wake", table_.on_wake, token);
    return static_cast<int>(tokens.size());
  }

  // ---- events ----

  // An attachment that this source, resolver or observer hears of. Before start() it is told then.
  void add_attachment(const AttachmentInfo& info) {
    known_.insert_or_assign(info.id.value, info);
    if (started_) event("attachment_added", table_.attachment_added, info);
  }
  void change_attachment(const AttachmentInfo& info) {
    known_.insert_or_assign(info.id.value, info);
    event("attachment_changed", table_.attachment_changed, info);
  }
  void remove_attachment(AttachmentId id, std::string_view reason) {
    const auto at = known_.find(id.value);
    if (at == known_.end())
      throw Error(ENOENT, "FakeHost knows no attachment " + std::to_string(id.value));
    const auto info = at->second;
    known_.erase(at);
    layers_.erase(id);
    if (table_.attachment_removed == nullptr) return;
    const RawInfo raw(info);
    judge("attachment_removed", table_.attachment_removed(self_, raw.get(), detail::abi(reason)));
  }
  // Rules without ids are numbered in order.
  void domain_rules(AttachmentId id, std::vector<Rule> rules) {
    if (table_.domain_rules == nullptr) return;
    if (std::all_of(rules.begin(), rules.end(),
                    [](const Rule& rule) { return rule.id.value == 0; }))
      for (std::size_t i = 0; i < rules.size(); ++i) rules[i].id = {static_cast<std::uint32_t>(i)};
    const detail::RawRules raw(rules);
    judge("domain_rules", table_.domain_rules(self_, id.value, raw.data(), raw.size()));
  }
  void denials(std::span<const Denial> denials) {
    if (table_.denials == nullptr) return;
    std::vector<sluice_denial> raw;
    for (const auto& denial : denials) raw.push_back(raw_denial(denial));
    judge("denials", table_.denials(self_, raw.data(), raw.size()));
  }
  // To an observer.
  void queries(std::span<const QueryReport> reports) {
    if (table_.queries == nullptr) return;
    const detail::RawReports raw(reports);
    judge("queries", table_.queries(self_, raw.data(), raw.size()));
  }
  // To a decider; it answers by what decisions() shows.
  void decide(const Query& query) {
    if (table_.decide == nullptr) return;
    const auto raw = detail::raw_query(query);
    {
      const std::lock_guard lock(mutex_);
      undecided_.insert(query.id);
    }
    judge("decide", table_.decide(self_, &raw));
  }
  // To a resolver: what became of its ask().
  void decided(std::uint64_t query_id, const Decision& decision) {
    if (table_.decided == nullptr) return;
    const detail::RawDecision raw(decision);
    judge("decided", table_.decided(self_, query_id, raw.get()));
  }
  // To a resolver: an answer that somebody waits to give. The push's id, for push_result().
  std::uint64_t push_answer(const Answer& answer) {
    std::uint64_t id = 0;
    {
      const std::lock_guard lock(mutex_);
      id = ++last_push_;
      waiting_pushes_.insert(id);
    }
    if (table_.answer_pushed == nullptr) return id;
    const detail::RawAnswer raw(answer);
    judge("answer_pushed", table_.answer_pushed(self_, id, raw.get()));
    return id;
  }
  void plugin_state(const PluginState& state) {
    if (table_.plugin_state == nullptr) return;
    const sluice_plugin_state raw{sizeof raw, 0, detail::abi(state.instance),
                                  detail::abi(state.state), detail::abi(state.reason)};
    judge("plugin_state", table_.plugin_state(self_, &raw));
  }
  // As after a full mailbox: on_resync, then every attachment anew.
  void resync() {
    event("on_resync", table_.on_resync);
    for (const auto& [id, info] : known_) event("attachment_added", table_.attachment_added, info);
  }

  // ---- what the plugin did ----

  [[nodiscard]] const std::map<AttachmentId, Attached>& attachments() const { return attached_; }
  [[nodiscard]] const std::map<AttachmentId, Layer>& layers() const { return layers_; }
  [[nodiscard]] std::vector<Learned> learned() const { return locked(learned_); }
  // One line a call, also of refused ones: "attach tap0", "detach 1 (gone)", "replace_layer 7 (3
  // rules)", "listed".
  [[nodiscard]] std::vector<std::string> calls() const { return locked(calls_); }
  void forget_calls() {
    const std::lock_guard lock(mutex_);
    calls_.clear();
  }
  [[nodiscard]] std::size_t count_calls(std::string_view beginning) const {
    const auto all = calls();
    return static_cast<std::size_t>(
        std::count_if(all.begin(), all.end(),
                      [&](const std::string& call) { return call.starts_with(beginning); }));
  }
  [[nodiscard]] std::vector<Line> lines() const {
    const std::lock_guard lock(mutex_);
    return lines_;
  }
  // What a resolver asked of a decider: answer by decided().
  [[nodiscard]] std::vector<Asked> asked() const { return locked(asked_); }
  // What a resolver reported.
  [[nodiscard]] std::vector<Reported> reports() const { return locked(reports_); }
  void forget_reports() {
    const std::lock_guard lock(mutex_);
    reports_.clear();
  }
  // What a resolver answered to push_answer(). Absent: nothing yet.
  [[nodiscard]] std::optional<PushResult> push_result(std::uint64_t push_id) const {
    const std::lock_guard lock(mutex_);
    const auto at = push_results_.find(push_id);
    return at == push_results_.end() ? std::nullopt : std::optional(at->second);
  }
  // What a decider said, by query.
  [[nodiscard]] std::map<std::uint64_t, Decision> decisions() const { return locked(decisions_); }
  // What an answer source pushed.
  [[nodiscard]] std::vector<PushedAnswer> pushed_answers() const { return pushed_answers_; }
  // The sockets of the last serve().
  [[nodiscard]] const std::vector<int>& served() const { return served_; }
  // Waits at most `patience` until `holds`, which looks at this FakeHost, is true; asked again
  // after each call of an [any] service, while wakes are delivered. What it was last.
  template <typename Condition>
  bool wait_until(Condition&& holds,
                  std::chrono::milliseconds patience = std::chrono::seconds(10)) {
    const auto end = std::chrono::steady_clock::now() + patience;
    for (;;) {
      std::uint64_t seen = 0;
      {
        const std::lock_guard lock(mutex_);
        seen = changes_;
      }
      run_wakes();
      if (holds()) return true;
      std::unique_lock lock(mutex_);
      const bool again =
          woken_.wait_until(lock, end, [&] { return changes_ != seen || !tokens_.empty(); });
      if (!again) break;
    }
    return holds();
  }
  // Why the instance failed: failed(), or an event that threw. Absent: it has not.
  [[nodiscard]] std::optional<std::string> failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

  // ---- a host that refuses ----

  // Each later call of `service` ("attach", "replace_layer", "timer_set"...) is refused with
  // `code`, until allow(). `rule_index`, `layer_index`: which one the refusal blames.
  void refuse(const std::string& service, int code, std::string message = {},
              std::uint32_t rule_index = Error::kNoRule, std::size_t layer_index = SIZE_MAX) {
    const std::lock_guard lock(mutex_);
    refusals_[service] = {code, std::move(message), rule_index, layer_index, SIZE_MAX};
  }
  // Only the next `times` calls.
  void refuse_times(std::size_t times, const std::string& service, int code,
                    std::string message = {}, std::uint32_t rule_index = Error::kNoRule) {
    const std::lock_guard lock(mutex_);
    refusals_[service] = {code, std::move(message), rule_index, SIZE_MAX, times};
  }
  void allow(const std::string& service) {
    const std::lock_guard lock(mutex_);
    refusals_.erase(service);
  }
  // As in quarantine: every service answers ESHUTDOWN.
  void shut_down() { closed_ = true; }

  // ---- who asks, by hand ----

  // Whose datagrams carry `mark`. Unknown marks are nobody's.
  void set_mark(std::uint32_t mark, AttachmentId id) {
    const std::lock_guard lock(mutex_);
    marks_[mark] = id;
  }
  void forget_mark(std::uint32_t mark) {
    const std::lock_guard lock(mutex_);
    marks_.erase(mark);
  }
  // Whose every accepted connection is; `asked` as the daemon tells it, its own address where it is
  // not given. {}: nobody's, as before the first call.
  void set_streams(AttachmentId id, std::optional<Endpoint> asked = {}) {
    const std::lock_guard lock(mutex_);
    stream_asker_ = id;
    stream_asked_ = asked;
  }
  // False: the wire has no decider, ask() answers ENOENT. True from the beginning.
  void set_decider(bool present) {
    const std::lock_guard lock(mutex_);
    has_decider_ = present;
  }
  // Called on the thread that learns, before it is answered and before learned() shows it: look
  // there at what must not have happened yet.
  void on_learn(std::function<void(const Learned&)> look) {
    const std::lock_guard lock(mutex_);
    on_learn_ = std::move(look);
  }

  // What the observer's counters() answers for an attachment; zeros where nothing was set.
  void set_counters(AttachmentId id, const Counters& counters) { counters_[id] = counters; }

 private:
  struct OptionValue {
    OptionType type = OptionType::string;
    bool boolean = false;
    std::int64_t integer = 0;
    std::string string;
    std::vector<std::string> items;
  };
  struct Refusal {
    int code;
    std::string message;
    std::uint32_t rule_index;
    std::size_t layer_index;
    std::size_t times;
  };

  struct Message {
    std::array<char, 1024> text{};
    char* data() { return text.data(); }
    std::size_t size() const { return text.size(); }
    void require(int result, const char* call) const {
      if (result >= 0) return;
      const std::string said(text.data(), strnlen(text.data(), text.size()));
      throw Error(-result, said.empty()
                               ? std::string(call) + ": " + std::generic_category().message(-result)
                               : said);
    }
  };

  // ---- options ----

  OptionValue& option_of(const std::string& path, OptionType type) {
    toml_options_.erase(path);
    auto& option = options_[path];
    option = {};
    option.type = type;
    return option;
  }

  // Defaults are TOML text; this reads what declarations hold: strings, integers, booleans, arrays
  // and inline tables of strings.
  struct DefaultText {
    std::string_view left;
    [[noreturn]] void fail() const {
      throw Error(EINVAL,
                  "default value is no TOML that an option can have, at: " + std::string(left));
    }
    void skip() {
      while (!left.empty() && (left.front() == ' ' || left.front() == '\n' || left.front() == '\t'))
        left.remove_prefix(1);
    }
    bool take(char c) {
      skip();
      if (left.empty() || left.front() != c) return false;
      left.remove_prefix(1);
      return true;
    }
    std::string string() {
      skip();
      if (left.empty() || (left.front() != '"' && left.front() != '\'')) fail();
      const char quote = left.front();
      left.remove_prefix(1);
      std::string text;
      while (!left.empty() && left.front() != quote) {
        if (quote == '"' && left.front() == '\\' && left.size() > 1) left.remove_prefix(1);
        text += left.front();
        left.remove_prefix(1);
      }
      if (!take(quote)) fail();
      return text;
    }
    std::string key() {
      skip();
      if (!left.empty() && left.front() == '"') return string();
      std::string text;
      while (!left.empty() && (std::isalnum(static_cast<unsigned char>(left.front())) ||
                               left.front() == '_' || left.front() == '-')) {
        text += left.front();
        left.remove_prefix(1);
      }
      if (text.empty()) fail();
      return text;
    }
  };
  static std::int64_t duration_of(const std::string& text) {
    std::int64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
    static constexpr std::pair<std::string_view, std::int64_t> kUnits[] = {
        {"ns", 1},
        {"us", 1'000},
        {"ms", 1'000'000},
        {"s", 1'000'000'000},
        {"m", 60'000'000'000},
        {"h", 3'600'000'000'000},
        {"d", 86'400'000'000'000}};
    for (const auto& [name, nanoseconds] : kUnits)
      if (error == std::errc{} && unit == name) return number * nanoseconds;
    throw Error(EINVAL, "\"" + text + "\" is no duration; write 250ms, 30s, 5m or 8h");
  }
  static OptionValue default_of(OptionType type, std::string_view text) {
    OptionValue value;
    value.type = type;
    DefaultText toml{text};
    toml.skip();
    switch (type) {
      case OptionType::string:
        value.string = toml.string();
        break;
      case OptionType::duration:
        value.integer = duration_of(toml.string());
        break;
      case OptionType::boolean:
        if (text != "true" && text != "false") toml.fail();
        value.boolean = text == "true";
        break;
      case OptionType::integer:
        if (std::from_chars(text.data(), text.data() + text.size(), value.integer).ec !=
            std::errc{})
          toml.fail();
        break;
      case OptionType::string_list:
        if (!toml.take('[')) toml.fail();
        while (!toml.take(']')) {
          value.items.push_back(toml.string());
          (void)toml.take(',');
        }
        break;
      case OptionType::string_table:
        if (!toml.take('{')) toml.fail();
        while (!toml.take('}')) {
          value.items.push_back(toml.key());
          if (!toml.take('=')) toml.fail();
          value.items.push_back(toml.string());
          (void)toml.take(',');
        }
        break;
    }
    return value;
  }

  class RawOptions {
   public:
    explicit RawOptions(const FakeHost& host) {
      std::set<std::string> declared;
      for (std::uint32_t i = 0; i < host.table_.option_count; ++i) {
        const auto option = detail::known_part(detail::element(host.table_.options, i));
        const auto path = detail::copy(option.path);
        declared.insert(path);
        add(host, option, path);
      }
      const auto check_declared = [&](const std::string& path) {
        if (!declared.contains(path))
          throw Error(EINVAL,
                      "option \"" + path + "\" is configured but the plugin does not declare it");
      };
      for (const auto& [path, value] : host.options_) check_declared(path);
      for (const auto& [path, text] : host.toml_options_) check_declared(path);
      raw_.size = sizeof raw_;
      raw_.instance = detail::abi(host.instance_);
      raw_.values = values_.data();
      raw_.value_count = values_.size();
      raw_.config_directory = detail::abi(host.config_directory_);
      raw_.state_directory = detail::abi(host.state_directory_);
    }
    RawOptions(const RawOptions&) = delete;
    RawOptions& operator=(const RawOptions&) = delete;
    [[nodiscard]] const sluice_config* config() const { return &raw_; }

   private:
    void add(const FakeHost& host, const sluice_option& option, const std::string& path) {
      const auto type = static_cast<OptionType>(option.type);
      const auto at = host.options_.find(path);
      std::string_view toml = detail::view(option.default_value);
      if (const auto text = host.toml_options_.find(path); text != host.toml_options_.end())
        toml = text->second;
      sluice_option_value raw{};
      raw.size = sizeof raw;
      raw.type = option.type;
      raw.path = option.path;
      if (at == host.options_.end() && toml.empty()) {
        if ((option.flags & SLUICE_OPTION_REQUIRED) != 0)
          throw Error(EINVAL, "option \"" + path + "\" is required; configure() it");
        values_.push_back(raw);
        return;
      }
      const auto& value =
          kept_.emplace_back(at != host.options_.end() ? at->second : default_of(type, toml));
      if (value.type != type)
        throw Error(EINVAL, "option \"" + path + "\" is configured as " +
                                std::string(to_string(value.type)) + ", declared as " +
                                std::string(to_string(type)));
      auto& items = items_.emplace_back();
      for (const auto& item : value.items) items.push_back(detail::abi(item));
      raw.is_set = 1;
      raw.boolean = value.boolean;
      raw.integer = value.integer;
      raw.string = detail::abi(value.string);
      raw.items = items.data();
      raw.item_count = items.size();
      values_.push_back(raw);
    }
    std::deque<OptionValue> kept_;
    std::deque<std::vector<sluice_string>> items_;
    std::vector<sluice_option_value> values_;
    sluice_config raw_{};
  };

  // ---- events ----

  class RawInfo {
   public:
    explicit RawInfo(const AttachmentInfo& info)
        : labels_(info.labels), target_(detail::raw_target(info.target)) {
      raw_ = {.size = sizeof raw_,
              .mode = static_cast<std::uint32_t>(info.mode),
              .id = info.id.value,
              .incarnation = info.incarnation,
              .generation = info.generation,
              .target = &target_,
              .labels = labels_.data(),
              .label_count = labels_.size(),
              .discovered_by = detail::abi(info.discovered_by),
              .state = detail::abi(info.state),
              .audit = info.audit,
              .redirected = info.redirected};
    }
    RawInfo(const RawInfo&) = delete;
    RawInfo& operator=(const RawInfo&) = delete;
    [[nodiscard]] const sluice_attachment_info* get() const { return &raw_; }

   private:
    detail::RawLabels labels_;
    sluice_target target_;
    sluice_attachment_info raw_{};
  };

  static sluice_denial raw_denial(const Denial& denial) {
    sluice_denial raw{};
    raw.size = sizeof raw;
    raw.audited = denial.audited;
    raw.attachment = denial.attachment.value;
    raw.time = static_cast<std::uint64_t>(denial.time.time_since_epoch().count());
    raw.generation = denial.generation;
    raw.reason = detail::abi(denial.reason);
    raw.family = denial.source.family;
    raw.protocol = denial.protocol;
    raw.icmp_type = denial.icmp_type;
    raw.icmp_code = denial.icmp_code;
    raw.source_port = denial.source_port;
    raw.destination_port = denial.destination_port;
    raw.ethertype = denial.ethertype;
    raw.length = denial.length;
    std::memcpy(raw.source, denial.source.bytes.data(), sizeof raw.source);
    std::memcpy(raw.destination, denial.destination.bytes.data(), sizeof raw.destination);
    raw.rule = detail::abi(denial.rule);
    return raw;
  }

  void judge(const char* name, int result) {
    if (result >= 0) return;
    fail(std::string(name) + " returned " + std::to_string(result) + " (" +
         std::generic_category().message(-result) + ")");
  }
  void event(const char* name, int (*function)(void*, const sluice_attachment_info*),
             const AttachmentInfo& info) {
    if (function != nullptr) judge(name, function(self_, RawInfo(info).get()));
  }
  template <typename... Parameters, typename... Arguments>
  void event(const char* name, int (*function)(void*, Parameters...), Arguments... arguments) {
    if (function != nullptr) judge(name, function(self_, arguments...));
  }
  void fail(const std::string& reason) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = reason;
  }
  [[nodiscard]] bool holds(std::uint32_t role) const { return (table_.roles & role) != 0; }

  // ---- services ----

  template <typename T>
  [[nodiscard]] T locked(const T& value) const {
    const std::lock_guard lock(mutex_);
    return value;
  }
  void note_change() {
    const std::lock_guard lock(mutex_);
    ++changes_;
    woken_.notify_all();
  }

  static FakeHost& of(sluice_host* host) { return *reinterpret_cast<FakeHost*>(host); }

  // What every [strand] service begins with: 0, or why it is refused. `self_` is set before a
  // thread of the plugin's that may call can exist, unless its constructor starts one.
  int admit(const char* service, const std::string& detail_text = {},
            sluice_applied* applied = nullptr, std::size_t* failed_index = nullptr) {
    if (closed_) return -ESHUTDOWN;
    if (std::this_thread::get_id() != strand_ || self_ == nullptr) {
      write_line(LogLevel::error,
                 std::string(service) +
                     (self_ == nullptr
                          ? " was called in the constructor; call it in start()"
                          : " was called from a thread that is not the strand; let it wake()"));
      return -EPERM;
    }
    return admit_any(service, detail_text, applied, failed_index);
  }
  // [any]
  int admit_any(const char* service, const std::string& detail_text = {},
                sluice_applied* applied = nullptr, std::size_t* failed_index = nullptr) {
    if (closed_) return -ESHUTDOWN;
    if (self_ == nullptr) {
      write_line(LogLevel::error,
                 std::string(service) + " was called in the constructor; call it in start()");
      return -EPERM;
    }
    const std::lock_guard lock(mutex_);
    calls_.push_back(detail_text.empty() ? service : std::string(service) + " " + detail_text);
    const auto at = refusals_.find(service);
    if (at == refusals_.end()) return 0;
    const auto refusal = at->second;
    if (refusal.times != SIZE_MAX && --at->second.times == 0) refusals_.erase(at);
    if (failed_index != nullptr) *failed_index = refusal.layer_index;
    refuse_with(applied, refusal.message, refusal.rule_index);
    return -refusal.code;
  }
  static void refuse_with(sluice_applied* applied, std::string_view message,
                          std::uint32_t rule_index) {
    if (applied == nullptr) return;
    applied->rule_index = rule_index;
    detail::write_message(applied->message, sizeof applied->message, message);
  }
  void write_line(LogLevel level, std::string text) {
    const std::lock_guard lock(mutex_);
    lines_.push_back({level, std::move(text)});
  }
  void report(AttachmentId id, sluice_applied* applied) {
    if (applied == nullptr) return;
    applied->generation = ++generations_[id];
  }
  static Layer layer_of(const sluice_layer* writers) {
    const auto raw = detail::known_part(writers);
    Layer layer;
    if (raw.mode != SLUICE_POLICY_UNSET) layer.mode = static_cast<Mode>(raw.mode);
    if (raw.audit != SLUICE_UNSET) layer.audit = raw.audit == SLUICE_TRUE;
    if (raw.replies != SLUICE_UNSET) layer.replies = raw.replies == SLUICE_TRUE;
    layer.rules = detail::rules_of(raw.rules, raw.rule_count);
    return layer;
  }
  static std::string name_of(const Target& target) {
    if (const auto* interface = std::get_if<InterfaceTarget>(&target)) return interface->name;
    return std::get<CgroupTarget>(target).path;
  }
  static bool same(const Target& a, const Target& b) {
    if (a.index() != b.index()) return false;
    if (const auto* interface = std::get_if<InterfaceTarget>(&a))
      return interface->ifindex == std::get<InterfaceTarget>(b).ifindex &&
             interface->netns_path == std::get<InterfaceTarget>(b).netns_path;
    return std::get<CgroupTarget>(a).cgroup_id == std::get<CgroupTarget>(b).cgroup_id &&
           std::get<CgroupTarget>(a).path == std::get<CgroupTarget>(b).path;
  }

  static const sluice_common_services& common_table() {
    static const sluice_common_services table{
        .size = sizeof(sluice_common_services),
        .log =
            [](sluice_host* host, std::uint32_t level, sluice_string text) {
              of(host).write_line(static_cast<LogLevel>(std::min(level, 4u)), detail::copy(text));
            },
        .now = [](sluice_host* host) { return static_cast<std::uint64_t>(of(host).clock_.load()); },
        .timer_set =
            [](sluice_host* host, std::uint64_t id, std::uint64_t delay) {
              auto& me = of(host);
              if (const int refused = me.admit("timer_set", std::to_string(id))) return refused;
              me.timers_[id] = me.clock_.load() + static_cast<std::int64_t>(delay);
              return 0;
            },
        .timer_cancel =
            [](sluice_host* host, std::uint64_t id) {
              auto& me = of(host);
              if (const int refused = me.admit("timer_cancel", std::to_string(id))) return refused;
              me.timers_.erase(id);
              return 0;
            },
        .fd_watch =
            [](sluice_host* host, int fd, std::uint32_t events) {
              auto& me = of(host);
              if (const int refused = me.admit("fd_watch")) return refused;
              me.fds_[fd] = events;
              return 0;
            },
        .fd_unwatch =
            [](sluice_host* host, int fd) {
              auto& me = of(host);
              if (const int refused = me.admit("fd_unwatch")) return refused;
              return me.fds_.erase(fd) == 0 ? -ENOENT : 0;
            },
        .wake =
            [](sluice_host* host, std::uint64_t token) {
              auto& me = of(host);
              if (me.closed_) return -ESHUTDOWN;
              const std::lock_guard lock(me.mutex_);
              if (std::find(me.tokens_.begin(), me.tokens_.end(), token) == me.tokens_.end())
                me.tokens_.push_back(token);
              me.woken_.notify_all();
              return 0;
            },
        .failed = [](sluice_host* host,
                     sluice_string reason) { of(host).fail(detail::copy(reason)); },
        .keep_fd =
            [](sluice_host* host, sluice_string raw_name, int fd) {
              auto& me = of(host);
              const auto name = detail::copy(raw_name);
              if (const int refused = me.admit("keep_fd", name)) return refused;
              const int kept = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
              if (kept < 0) return -errno;
              const std::lock_guard lock(me.mutex_);
              if (const auto at = me.kept_fds_.find(name); at != me.kept_fds_.end())
                ::close(std::exchange(at->second, kept));
              else
                me.kept_fds_.emplace(name, kept);
              return 0;
            },
        .kept_fd =
            [](sluice_host* host, sluice_string raw_name) {
              auto& me = of(host);
              const auto name = detail::copy(raw_name);
              if (const int refused = me.admit_any("kept_fd", name)) return refused;
              const std::lock_guard lock(me.mutex_);
              const auto at = me.kept_fds_.find(name);
              if (at == me.kept_fds_.end()) return -ENOENT;
              const int copy = ::fcntl(at->second, F_DUPFD_CLOEXEC, 0);
              return copy < 0 ? -errno : copy;
            },
        .drop_fd =
            [](sluice_host* host, sluice_string raw_name) {
              auto& me = of(host);
              const auto name = detail::copy(raw_name);
              if (const int refused = me.admit("drop_fd", name)) return refused;
              const std::lock_guard lock(me.mutex_);
              const auto at = me.kept_fds_.find(name);
              if (at == me.kept_fds_.end()) return -ENOENT;
              ::close(at->second);
              me.kept_fds_.erase(at);
              return 0;
            }};
    return table;
  }

  static const sluice_discovery_services& discovery_table() {
    static const sluice_discovery_services table{
        .size = sizeof(sluice_discovery_services),
        .attach =
            [](sluice_host* host, const sluice_target* raw, const sluice_label* labels,
               std::size_t count, sluice_attachment* id, sluice_applied* applied) {
              auto& me = of(host);
              const auto target = detail::target_of(raw);
              if (const int refused = me.admit("attach", name_of(target), applied)) return refused;
              auto at = std::find_if(
                  me.attached_.begin(), me.attached_.end(),
                  [&](const auto& entry) { return same(entry.second.target, target); });
              if (at == me.attached_.end())
                at = me.attached_.emplace(AttachmentId{++me.last_id_}, Attached{}).first;
              at->second.target = target;
              at->second.labels = detail::labels_of(labels, count);
              *id = at->first.value;
              return 0;
            },
        .detach =
            [](sluice_host* host, sluice_attachment id, sluice_string reason) {
              auto& me = of(host);
              if (const int refused =
                      me.admit("detach", std::to_string(id) + " (" + detail::copy(reason) + ")"))
                return refused;
              return me.attached_.erase({id}) == 0 ? -ENOENT : 0;
            },
        .relabel =
            [](sluice_host* host, sluice_attachment id, const sluice_label* labels,
               std::size_t count) {
              auto& me = of(host);
              if (const int refused = me.admit("relabel", std::to_string(id))) return refused;
              const auto at = me.attached_.find({id});
              if (at == me.attached_.end()) return -ENOENT;
              at->second.labels = detail::labels_of(labels, count);
              return 0;
            },
        .listed = [](sluice_host* host) { return of(host).admit("listed"); }};
    return table;
  }

  int set_layer(AttachmentId id, Layer layer, sluice_applied* applied) {
    if (!known_.contains(id.value)) {
      refuse_with(applied, "attachment " + std::to_string(id.value) + " does not exist",
                  UINT32_MAX);
      return -ENOENT;
    }
    layers_[id] = std::move(layer);
    report(id, applied);
    return 0;
  }
  static const sluice_policy_services& policy_table() {
    static const sluice_policy_services table{
        .size = sizeof(sluice_policy_services),
        .replace_layer =
            [](sluice_host* host, sluice_attachment id, const sluice_layer* raw,
               sluice_applied* applied) {
              auto& me = of(host);
              auto layer = layer_of(raw);
              if (const int refused = me.admit(
                      "replace_layer",
                      std::to_string(id) + " (" + std::to_string(layer.rules.size()) + " rules)",
                      applied))
                return refused;
              return me.set_layer({id}, std::move(layer), applied);
            },
        .update_layer =
            [](sluice_host* host, sluice_attachment id, std::uint64_t base, const sluice_rule* add,
               std::size_t add_count, const sluice_rule* remove, std::size_t remove_count,
               sluice_applied* applied) {
              auto& me = of(host);
              if (const int refused =
                      me.admit("update_layer",
                               std::to_string(id) + " (+" + std::to_string(add_count) + " -" +
                                   std::to_string(remove_count) + ")",
                               applied))
                return refused;
              if (base != 0 && base != me.generations_[{id}]) {
                refuse_with(applied, "made for generation " + std::to_string(base), UINT32_MAX);
                return -ESTALE;
              }
              auto layer = me.layers_[{id}];
              for (const auto& rule : detail::rules_of(remove, remove_count))
                std::erase(layer.rules, rule);
              for (auto& rule : detail::rules_of(add, add_count))
                layer.rules.push_back(std::move(rule));
              return me.set_layer({id}, std::move(layer), applied);
            },
        .withdraw_layer =
            [](sluice_host* host, sluice_attachment id, sluice_applied* applied) {
              auto& me = of(host);
              if (const int refused = me.admit("withdraw_layer", std::to_string(id), applied))
                return refused;
              me.layers_.erase({id});
              me.report({id}, applied);
              return 0;
            },
        .replace_layers =
            [](sluice_host* host, const sluice_attachment* ids, const sluice_layer* raw,
               std::size_t count, std::size_t* failed_index, sluice_applied* applied) {
              auto& me = of(host);
              if (const int refused =
                      me.admit("replace_layers", "(" + std::to_string(count) + " layers)", applied,
                               failed_index))
                return refused;
              for (std::size_t i = 0; i < count; ++i)
                if (!me.known_.contains(ids[i])) {
                  *failed_index = i;
                  refuse_with(applied, "attachment " + std::to_string(ids[i]) + " does not exist",
                              UINT32_MAX);
                  return -ENOENT;
                }
              for (std::size_t i = 0; i < count; ++i)
                (void)me.set_layer({ids[i]}, layer_of(detail::element(raw, i)), applied);
              return 0;
            }};
    return table;
  }

  int learn(sluice_attachment id, const sluice_push* push, sluice_applied* applied) {
    std::vector<Learned> grants;
    std::size_t count = 0;
    for (std::size_t i = 0; i < push->grant_count; ++i) {
      const auto* const raw = detail::element(push->grants, i);
      auto& grant =
          grants.emplace_back(Learned{{id},
                                      detail::addresses_of(raw->addresses, raw->address_count),
                                      std::chrono::nanoseconds(raw->ttl_ns),
                                      std::chrono::nanoseconds(raw->grace_ns),
                                      raw->rule,
                                      detail::ports_of(raw->ports, raw->port_count)});
      for (std::size_t k = 0; k < push->name_count; ++k)
        grant.names.emplace_back(detail::view(push->names[k]));
      count += raw->address_count;
    }
    if (const int refused = admit_any(
            "learn", std::to_string(id) + " (" + std::to_string(count) + " addresses)", applied))
      return refused;
    std::function<void(const Learned&)> look;
    {
      const std::lock_guard lock(mutex_);
      look = on_learn_;
      ++pushes_;
      for (auto& grant : grants) grant.push = pushes_;
    }
    if (look)
      for (const auto& grant : grants) look(grant);
    {
      const std::lock_guard lock(mutex_);
      std::move(grants.begin(), grants.end(), std::back_inserter(learned_));
    }
    note_change();
    return 0;
  }
  // As the daemon's: the address that the connection came to is the server that was asked.
  static Endpoint local_end(int fd) {
    sockaddr_storage storage{};
    socklen_t length = sizeof storage;
    Endpoint end;
    if (::getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &length) != 0) return end;
    if (storage.ss_family == AF_INET6) {
      const auto& ip6 = reinterpret_cast<const sockaddr_in6&>(storage);
      end.address.family = 6;
      std::memcpy(end.address.bytes.data(), &ip6.sin6_addr, 16);
      end.port = ntohs(ip6.sin6_port);
    } else if (storage.ss_family == AF_INET) {
      const auto& ip4 = reinterpret_cast<const sockaddr_in&>(storage);
      std::memcpy(end.address.bytes.data(), &ip4.sin_addr, 4);
      end.port = ntohs(ip4.sin_port);
    }
    return end;
  }
  static const sluice_resolver_services& resolver_table() {
    static const sluice_resolver_services table{
        .size = sizeof(sluice_resolver_services),
        .learn = [](sluice_host* host, sluice_attachment id, const sluice_push* push,
                    sluice_applied* applied) { return of(host).learn(id, push, applied); },
        .revoke =
            [](sluice_host* host, sluice_attachment id, const sluice_address* raw,
               std::size_t count) {
              auto& me = of(host);
              if (const int refused = me.admit_any(
                      "revoke", std::to_string(id) + " (" + std::to_string(count) + " addresses)"))
                return refused;
              const auto gone = detail::addresses_of(raw, count);
              {
                const std::lock_guard lock(me.mutex_);
                for (auto& learned : me.learned_)
                  if (learned.attachment == AttachmentId{id})
                    std::erase_if(learned.addresses, [&](const Address& address) {
                      return std::find(gone.begin(), gone.end(), address) != gone.end();
                    });
              }
              me.note_change();
              return 0;
            },
        .serve =
            [](sluice_host* host, const sluice_listener* listeners, std::size_t count) {
              auto& me = of(host);
              if (const int refused = me.admit("serve", "(" + std::to_string(count) + " sockets)"))
                return refused;
              me.served_.clear();
              for (std::size_t i = 0; i < count; ++i)
                me.served_.push_back(detail::element(listeners, i)->fd);
              return 0;
            },
        .asker_of_mark =
            [](sluice_host* host, std::uint32_t mark, sluice_attachment* id) {
              auto& me = of(host);
              if (me.closed_) return -ESHUTDOWN;
              const std::lock_guard lock(me.mutex_);
              const auto at = me.marks_.find(mark);
              if (at == me.marks_.end()) return -ENOENT;
              *id = at->second.value;
              return 0;
            },
        .asker_of_stream =
            [](sluice_host* host, int accepted, sluice_attachment* id, sluice_endpoint* asked) {
              auto& me = of(host);
              if (me.closed_) return -ESHUTDOWN;
              const std::lock_guard lock(me.mutex_);
              if (!me.stream_asker_) return -ENOENT;
              *id = me.stream_asker_.value;
              const auto end = me.stream_asked_ ? *me.stream_asked_ : local_end(accepted);
              *asked = {};
              asked->family = end.address.family;
              asked->port = end.port;
              std::memcpy(asked->address, end.address.bytes.data(), sizeof asked->address);
              return 0;
            },
        .ask =
            [](sluice_host* host, const sluice_query* raw, std::uint64_t deadline) {
              auto& me = of(host);
              auto query = detail::query_of(raw);
              if (const int refused = me.admit_any("ask", query.name)) return refused;
              {
                const std::lock_guard lock(me.mutex_);
                if (!me.has_decider_) return -ENOENT;
                me.asked_.push_back({std::move(query), Time(std::chrono::nanoseconds(deadline))});
              }
              me.note_change();
              return 0;
            },
        .pushed =
            [](sluice_host* host, std::uint64_t push_id, int result, sluice_string message) {
              auto& me = of(host);
              if (const int refused = me.admit_any("pushed", std::to_string(push_id)))
                return refused;
              {
                const std::lock_guard lock(me.mutex_);
                if (me.waiting_pushes_.erase(push_id) == 0) return -ENOENT;
                me.push_results_[push_id] = {-result, detail::copy(message)};
              }
              me.note_change();
              return 0;
            },
        .report =
            [](sluice_host* host, const sluice_query_report* raw, std::size_t count) {
              auto& me = of(host);
              if (me.closed_) return -ESHUTDOWN;
              const detail::Reports reports(raw, count);
              {
                const std::lock_guard lock(me.mutex_);
                for (const auto& report : reports.get()) me.reports_.emplace_back(report);
              }
              me.note_change();
              return 0;
            }};
    return table;
  }

  static const sluice_decider_services& decider_table() {
    static const sluice_decider_services table{
        .size = sizeof(sluice_decider_services),
        .decided = [](sluice_host* host, std::uint64_t query_id, const sluice_decision_made* raw) {
          auto& me = of(host);
          if (const int refused = me.admit_any("decided", std::to_string(query_id))) return refused;
          {
            const std::lock_guard lock(me.mutex_);
            if (me.undecided_.erase(query_id) == 0) return -ENOENT;
            me.decisions_[query_id] = detail::decision_of(raw);
          }
          me.note_change();
          return 0;
        }};
    return table;
  }

  static const sluice_answer_source_services& answer_source_table() {
    static const sluice_answer_source_services table{
        .size = sizeof(sluice_answer_source_services),
        .push_answer = [](sluice_host* host, const sluice_answer* raw, std::uint64_t deadline,
                          sluice_applied* applied) {
          auto& me = of(host);
          auto answer = detail::answer_of(raw);
          if (const int refused = me.admit("push_answer", answer.name, applied)) return refused;
          if (!me.known_.contains(answer.attachment.value)) {
            refuse_with(applied,
                        "attachment " + std::to_string(answer.attachment.value) + " does not exist",
                        UINT32_MAX);
            return -ENOENT;
          }
          me.pushed_answers_.push_back(
              {std::move(answer), Time(std::chrono::nanoseconds(deadline))});
          return 0;
        }};
    return table;
  }

  static const sluice_observer_services& observer_table() {
    static const sluice_observer_services table{
        .size = sizeof(sluice_observer_services),
        .counters =
            [](sluice_host* host, sluice_attachment id, sluice_counters_info* into) {
              auto& me = of(host);
              if (const int refused = me.admit("counters", std::to_string(id))) return refused;
              if (!me.known_.contains(id)) return -ENOENT;
              const auto& counters = me.counters_[{id}];
              const sluice_counters_info mine{into->size,
                                              0,
                                              counters.allowed_packets,
                                              counters.allowed_bytes,
                                              counters.denied_packets,
                                              counters.denied_bytes,
                                              counters.audited_packets,
                                              counters.events_lost};
              std::memcpy(into, &mine, std::min<std::size_t>(into->size, sizeof mine));
              return 0;
            },
        .list =
            [](sluice_host* host, void (*each)(void*, const sluice_attachment_info*),
               void* context) {
              auto& me = of(host);
              if (const int refused = me.admit("list")) return refused;
              for (const auto& [id, info] : me.known_) each(context, RawInfo(info).get());
              return 0;
            }};
    return table;
  }

  const std::thread::id strand_ = std::this_thread::get_id();
  std::string instance_, config_directory_ = "/etc/sluice",
                         state_directory_ = "/var/lib/sluice/plugins/test";
  std::map<std::string, OptionValue> options_;
  std::map<std::string, std::string> toml_options_;
  sluice_services services_{};
  sluice_plugin table_{};
  void* self_ = nullptr;
  bool started_ = false;
  std::atomic<bool> closed_{false};
  std::atomic<std::int64_t> clock_{1'000'000'000};

  std::map<std::uint64_t, std::int64_t> timers_;
  std::map<int, std::uint32_t> fds_;
  std::map<AttachmentId, Attached> attached_;
  std::map<std::uint64_t, AttachmentInfo> known_;
  std::map<AttachmentId, Layer> layers_;
  std::map<AttachmentId, std::uint64_t> generations_;
  std::map<AttachmentId, Counters> counters_;
  std::vector<int> served_;
  std::vector<PushedAnswer> pushed_answers_;
  std::uint64_t last_id_ = 0;

  mutable std::mutex mutex_;  // over what [any] services touch
  std::condition_variable woken_;
  std::deque<std::uint64_t> tokens_;
  std::vector<Line> lines_;
  std::optional<std::string> failure_;
  std::uint64_t changes_ = 0;
  std::map<std::string, Refusal> refusals_;
  std::vector<std::string> calls_;
  std::vector<Learned> learned_;
  std::size_t pushes_ = 0;
  std::function<void(const Learned&)> on_learn_;
  std::map<std::uint32_t, AttachmentId> marks_;
  AttachmentId stream_asker_;
  std::optional<Endpoint> stream_asked_;
  bool has_decider_ = true;
  std::vector<Asked> asked_;
  std::vector<Reported> reports_;
  std::uint64_t last_push_ = 0;
  std::set<std::uint64_t> waiting_pushes_;
  std::map<std::uint64_t, PushResult> push_results_;
  std::set<std::uint64_t> undecided_;
  std::map<std::uint64_t, Decision> decisions_;
  std::map<std::string, int> kept_fds_;
};

}  // namespace sluice::sdk
