#include "journal/plugin.hpp"

#include <algorithm>

namespace sluice::journal {
namespace {

constexpr std::uint64_t kWindowEnds = 1;

std::uint64_t integer(const Config& config, const char* option, std::int64_t lowest,
                      std::int64_t highest) {
  const auto value = config.get<std::int64_t>(option);
  if (value < lowest || value > highest)
    throw Error(EINVAL, std::string(option) + ": " + std::to_string(value) + "; it takes " +
                            std::to_string(lowest) + " to " + std::to_string(highest));
  return static_cast<std::uint64_t>(value);
}

std::chrono::nanoseconds window_of(const Config& config) {
  using namespace std::chrono_literals;
  const auto window = config.get<std::chrono::nanoseconds>("window");
  if (window < 100ms || window > 10min) throw Error(EINVAL, "window: it takes 100ms to 10m");
  return window;
}

std::string queries_of(const Config& config) {
  auto wanted = config.get<std::string>("queries");
  if (wanted != "all" && wanted != "refused" && wanted != "none")
    throw Error(EINVAL, "queries: \"" + clean(wanted, 64) +
                            "\" is unknown; write \"all\", \"refused\" or \"none\"");
  return wanted;
}

std::uint64_t records_of(const Config& config) {
  const auto rate = integer(config, "rate", 1, 100'000);
  const auto window = std::chrono::duration<double>(window_of(config)).count();
  return std::max<std::uint64_t>(1, static_cast<std::uint64_t>(static_cast<double>(rate) * window));
}

}  // namespace

JournalPlugin::JournalPlugin(const Config& config)
    : to_(config.get<std::string>("to")),
      denials_wanted_(config.get<bool>("denials")),
      queries_wanted_(queries_of(config)),
      window_length_(window_of(config)),
      records_of_window_(records_of(config)),
      most_bytes_(integer(config, "max_file_kib", 64, 64 << 20) * 1024),
      window_({.of_workload = integer(config, "distinct", 1, 8192)}) {}

void JournalPlugin::start() {
  sink_ = open_sink(to_, most_bytes_);
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
  if (!denials_wanted_) return;
  for (const auto& denial : denials) add(Event::of(denial, workload(denial.attachment)));
}

void JournalPlugin::queries(std::span<const QueryReport> reports) {
  if (queries_wanted_ == "none") return;
  for (const auto& report : reports) {
    const bool passed = report.verdict == QueryVerdict::allowed && !report.audited;
    if (queries_wanted_ == "all" || !passed) add(Event::of(report, workload(report.attachment)));
  }
}

// The timer runs only while there is something to tell: a quiet host wakes up for nothing.
void JournalPlugin::add(Event event) {
  window_.add(std::move(event));
  if (std::exchange(armed_, true)) return;
  set_timer(kWindowEnds, window_length_);
}

void JournalPlugin::write_window() {
  if (!sink_ || (window_.empty() && records_left_out_ == 0)) return;
  const Clocks clocks{now(), std::chrono::system_clock::now()};
  sink_->begin();
  std::uint64_t written = 0;
  for (auto& event : window_.take()) {
    // Reports run ahead of the news of an attachment.
    if (!event.workload && event.attachment) event.workload = workload(event.attachment);
    if (written < records_of_window_ && sink_->write(record_of(event, clocks))) {
      written += 1;
      continue;
    }
    records_left_out_ += 1;
    events_left_out_ += event.count;
  }
  const bool told = records_left_out_ == 0 ||
                    sink_->write(left_out(records_left_out_, events_left_out_, clocks.wall));
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
