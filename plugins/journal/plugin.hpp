// The observer "journal": writes what was denied and what became of DNS queries as structured
// records, to journald, a file or stderr. Identical events within a window are one record with a
// count; all it keeps and writes is bounded.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <unordered_map>

#include <sluice/plugin.hpp>

#include "journal/event.hpp"
#include "journal/sink.hpp"
#include "journal/window.hpp"

namespace sluice::journal {

class JournalPlugin final : public Plugin, public Observer {
 public:
  static constexpr About about{"journal", "1.0",
                               "writes denials and DNS decisions as structured records"};
  static constexpr std::array options{
      Option::string("to")
          .defaults_to("\"journald\"")
          .help("journald, stderr, or file:/path for lines of JSON"),
      Option::boolean("denials").defaults_to("true").help("records of denied packets"),
      Option::string("queries").defaults_to("\"all\"").help(
          "records of DNS queries: all, refused (all that were not simply allowed), none"),
      Option::duration("window").defaults_to("\"5s\"").help(
          "identical events within it become one record with a count"),
      Option::integer("rate").defaults_to("500").help(
          "records a second; those beyond are counted and left out"),
      Option::integer("distinct")
          .defaults_to("256")
          .help("distinct events of one workload in a window; those beyond are only counted"),
      Option::integer("max_file_kib")
          .defaults_to("65536")
          .help("a file that would grow beyond is moved to PATH.1"),
  };

  // Throws Error(EINVAL) for options that cannot be meant: all of them in one message.
  explicit JournalPlugin(const Config& config);

  void start() override;
  void stop() override;
  void on_timer(std::uint64_t id) override;
  void attachment_added(const AttachmentInfo& info) override;
  void attachment_changed(const AttachmentInfo& info) override;
  void attachment_removed(const AttachmentInfo& info, std::string_view reason) override;
  void denials(std::span<const Denial> denials) override;
  void queries(std::span<const QueryReport> reports) override;

 private:
  struct Settings {
    std::string to, queries;
    bool denials = true;
    std::chrono::nanoseconds window{};
    std::uint64_t records_of_window = 0, most_bytes = 0;
    std::size_t distinct = 0;
  };
  [[nodiscard]] static Settings settings_of(const Config& config);
  [[nodiscard]] WorkloadPtr workload(AttachmentId id) const;
  void add(Event event);
  void write_window();

  const Settings settings_;
  std::unique_ptr<Sink> sink_;
  Window window_;
  bool armed_ = false;
  bool failing_ = false;  // said so already
  std::uint64_t records_left_out_ = 0, events_left_out_ = 0;
  std::unordered_map<AttachmentId, WorkloadPtr> workloads_;
};

}  // namespace sluice::journal
