#include "journal/plugin.hpp"

#include <algorithm>

namespace sluice::journal {
namespace {

constexpr std::uint64_t kWindowEnds = 1;

// All that is wrong with the options, since whoever corrects one wants to know of the others.
class Faults {
 public:
  void add(const std::string& fault) { text_ += (text_.empty() ? "" : "; also ") + fault; }
  void refuse() const {
    if (!text_.empty()) throw Error(EINVAL, text_);
  }

 private:
  std::string text_;
};

std::uint64_t integer(const Config& config, const char* option, std::int64_t lowest,
                      std::int64_t highest, Faults& faults) {
  const auto value = config.get<std::int64_t>(option);
  if (value < lowest || value > highest) {
    faults.add(std::string(option) + ": " + std::to_string(value) + "; it takes " +
               std::to_string(lowest) + " to " + std::to_string(highest));
    return static_cast<std::uint64_t>(lowest);
  }
  return static_cast<std::uint64_t>(value);
}

}  // namespace

JournalPlugin::Settings JournalPlugin::settings_of(const Config& config) {
  using namespace std::chrono_literals;
  Faults faults;
  Settings settings;
  settings.to = config.get<std::string>("to");
  if (const auto fault = destination_fault(settings.to); !fault.empty()) faults.add(fault);
  settings.denials = config.get<bool>("denials");
  settings.queries = config.get<std::string>("queries");
  if (settings.queries != "all" && settings.queries != "refused" && settings.queries != "none")
    faults.add("queries: \"" + clean(settings.queries, 64) +
               "\" is unknown; write \"all\", \"refused\" or \"none\"");
  settings.window = config.get<std::chrono::nanoseconds>("window");
  if (settings.window < 100ms || settings.window > 10min)
    faults.add("window: it takes 100ms to 10m");
  const auto rate = static_cast<double>(integer(config, "rate", 1, 100'000, faults));
  const auto seconds = std::chrono::duration<double>(settings.window).count();
  settings.records_of_window =
      std::max<std::uint64_t>(1, static_cast<std::uint64_t>(std::max(0.0, rate * seconds)));
  settings.most_bytes = integer(config, "max_file_kib", 64, 64 << 20, faults) * 1024;
  settings.distinct = integer(config, "distinct", 1, 8192, faults);
  faults.refuse();
  return settings;
}

JournalPlugin::JournalPlugin(const Config& config)
    : settings_(settings_of(config)), window_({.of_workload = settings_.distinct}) {}

void JournalPlugin::start() {
  sink_ = open_sink(settings_.to, settings_.most_bytes);
}

void JournalPlugin::stop() {
  write_window();
}

void JournalPlugin::on_timer(std::uint64_t) {
  armed_ = false;
  write_window();
}

void JournalPlugin::attachment_added(const AttachmentInfo& info) {
  workloads_.insert_or_assign(info.id, workload_of(info));
}
void JournalPlugin::attachment_changed(const AttachmentInfo& info) {
  attachment_added(info);
}
void JournalPlugin::attachment_removed(const AttachmentInfo& info, std::string_view) {
  workloads_.erase(info.id);
}

WorkloadPtr JournalPlugin::workload(AttachmentId id) const {
  const auto known = workloads_.find(id);
  return known == workloads_.end() ? nullptr : known->second;
}

void JournalPlugin::denials(std::span<const Denial> denials) {
  if (!settings_.denials) return;
  for (const auto& denial : denials) add(Event::of(denial, workload(denial.attachment)));
}

void JournalPlugin::queries(std::span<const QueryReport> reports) {
  if (settings_.queries == "none") return;
  for (const auto& report : reports) {
    const bool passed = report.verdict == QueryVerdict::allowed && !report.audited;
    if (settings_.queries == "all" || !passed) add(Event::of(report, workload(report.attachment)));
  }
}

// The timer runs only while there is something to tell: a quiet host wakes up for nothing.
void JournalPlugin::add(Event event) {
  window_.add(std::move(event));
  if (std::exchange(armed_, true)) return;
  set_timer(kWindowEnds, settings_.window);
}

void JournalPlugin::write_window() {
  if (!sink_ || (window_.empty() && records_left_out_ == 0)) return;
  const Clocks clocks{now(), std::chrono::system_clock::now()};
  sink_->begin();
  std::uint64_t written = 0;
  // A place that fails is asked once in a window: one that does not read is waited for each time.
  bool fails = false;
  for (auto& event : window_.take()) {
    // Reports run ahead of the news of an attachment.
    if (!event.workload && event.attachment) event.workload = workload(event.attachment);
    if (!fails && written < settings_.records_of_window) {
      fails = !sink_->write(record_of(event, clocks));
      if (!fails) {
        written += 1;
        continue;
      }
    }
    records_left_out_ += 1;
    events_left_out_ += event.count;
  }
  const bool told =
      !fails && (records_left_out_ == 0 ||
                 sink_->write(left_out(records_left_out_, events_left_out_, clocks.wall)));
  if (told) {
    records_left_out_ = events_left_out_ = 0;
  } else if (!failing_) {
    log(LogLevel::warning, "records cannot be written: " + sink_->error() +
                               "; they are counted and told when it works again");
  }
  if (told && failing_) log(LogLevel::info, "records are written again");
  failing_ = !told;
}

}  // namespace sluice::journal
