// SPDX-License-Identifier: Apache-2.0
// Finds workloads by a directory of small files, one for each, which whoever starts the workloads
// writes:
//
//   # /run/workloads/vm-7
//   tap7
//   tenant = acme
//
// The first line names the interface, each further one a label; the file's name becomes the label
// `workload`. A file that goes takes its filter along. Write a file under a name with a leading
// dot, then rename it: what is read is whole.
//
// A template for discovery plugins: everything here follows from one function, reconcile(), which
// compares what should be with what is. Events only say when to look again, so a lost one costs
// time and nothing else.
#pragma once

#include <net/if.h>
#include <sys/inotify.h>
#include <unistd.h>
#include <sluice/plugin.hpp>

#include <fstream>
#include <optional>

class WorkloadFiles : public sluice::Plugin, public sluice::Discovery {
 public:
  static constexpr sluice::About about{"workload_files", "1.0",
                                       "finds workloads by a directory of files"};
  static constexpr std::array options{
      sluice::Option::string("directory").required().help("where the files are"),
      sluice::Option::duration("interval")
          .defaults_to("\"2s\"")
          .help("how often to look for interfaces that did not exist yet, or were made anew"),
      sluice::Option::string_table("labels").defaults_to("{}").help(
          "labels that every workload gets"),
  };

  explicit WorkloadFiles(const sluice::Config& config)
      : directory_(config.config_directory() / config.get<std::string>("directory")),
        interval_(config.get<std::chrono::nanoseconds>("interval")),
        labels_(config.get<sluice::Labels>("labels")) {
    if (interval_ < std::chrono::milliseconds(10))
      throw sluice::Error(EINVAL, "interval is shorter than 10 ms; make it a second or so");
  }
  ~WorkloadFiles() override {
    if (inotify_ >= 0) ::close(inotify_);
  }

  void start() override {
    inotify_ = ::inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (inotify_ < 0)
      throw std::system_error(errno, std::generic_category(), "inotify cannot be used");
    constexpr auto kChanges =
        IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF;
    if (::inotify_add_watch(inotify_, directory_.c_str(), kChanges | IN_ONLYDIR) < 0)
      throw sluice::Error(errno, directory_.string() + ": cannot be watched: " +
                                     std::generic_category().message(errno) +
                                     "; create the directory, or correct `directory`");
    watch(inotify_);
    reconcile();
    listed();
    set_timer(kLookAgain, interval_);
  }

  void on_fd(int, std::uint32_t) override {
    alignas(inotify_event) char events[4096];
    for (ssize_t got; (got = ::read(inotify_, events, sizeof events)) > 0;)
      for (ssize_t at = 0; at < got;) {
        const auto& event = *reinterpret_cast<const inotify_event*>(events + at);
        if ((event.mask & (IN_DELETE_SELF | IN_MOVE_SELF)) != 0)
          return failed(directory_.string() + " has gone; create it again");
        at += static_cast<ssize_t>(sizeof event + event.len);
      }
    reconcile();
  }
  void on_timer(std::uint64_t) override {
    reconcile();
    set_timer(kLookAgain, interval_);
  }
  void on_resync() override {
    reconcile();
    listed();
  }

 private:
  static constexpr std::uint64_t kLookAgain = 1;

  struct Workload {
    std::string interface;
    sluice::Labels labels;
    unsigned ifindex = 0;             // that the attachment is for
    sluice::AttachmentId attachment;  // none: not attached yet
    std::string complaint;            // the last one, so that each is said once
    bool operator==(const Workload&) const = default;
  };

  void reconcile() {
    const auto wanted = read_all();
    for (auto at = workloads_.begin(); at != workloads_.end();) {
      if (wanted.contains(at->first)) {
        ++at;
        continue;
      }
      drop(at->second, "its file " + at->first + " has gone");
      at = workloads_.erase(at);
    }
    for (const auto& [file, desired] : wanted) settle(file, workloads_[file], desired);
  }

  void settle(const std::string& file, Workload& workload, const Workload& desired) {
    const unsigned ifindex = ::if_nametoindex(desired.interface.c_str());
    if (workload.attachment && workload.ifindex != ifindex)
      drop(workload, "its interface " + workload.interface +
                         " was made anew, or went, or its file names another");
    const bool same = workload.attachment && workload.labels == desired.labels;
    workload.interface = desired.interface;
    workload.labels = desired.labels;
    if (same || ifindex == 0) return;  // an interface that is not there yet is looked for again
    try {
      workload.attachment = attach(
          sluice::InterfaceTarget{.name = workload.interface, .ifindex = ifindex}, workload.labels);
      workload.ifindex = ifindex;
      workload.complaint.clear();
    } catch (const sluice::Error& error) {
      if (error.code() == ESHUTDOWN) throw;
      if (workload.complaint == error.what()) return;
      workload.complaint = error.what();
      log(sluice::LogLevel::warning, file + ": " + workload.complaint + "; it is tried again");
    }
  }

  void drop(Workload& workload, const std::string& reason) {
    if (!workload.attachment) return;
    try {
      detach(workload.attachment, reason);
    } catch (const sluice::Error& error) {
      // The host drops an attachment by itself when its interface goes.
      if (error.code() != ENOENT) throw;
    }
    workload.attachment = {};
  }

  std::map<std::string, Workload> read_all() const {
    std::map<std::string, Workload> all;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(directory_, error)) {
      const auto name = entry.path().filename().string();
      if (name.front() == '.' || !entry.is_regular_file(error)) continue;
      if (auto workload = read(entry.path())) all.emplace(name, std::move(*workload));
    }
    return all;
  }

  std::optional<Workload> read(const std::filesystem::path& file) const {
    std::ifstream text(file);
    Workload workload;
    workload.labels = labels_;
    std::string line;
    while (std::getline(text, line)) {
      const auto equals = line.find('=');
      if (trimmed(line).empty() || line.front() == '#') continue;
      if (workload.interface.empty())
        workload.interface = trimmed(line);
      else if (equals != std::string::npos)
        workload.labels.insert_or_assign(trimmed(line.substr(0, equals)),
                                         trimmed(line.substr(equals + 1)));
    }
    if (workload.interface.empty()) return std::nullopt;  // being written
    workload.labels.insert_or_assign("workload", file.filename().string());
    return workload;
  }

  static std::string trimmed(const std::string& text) {
    const auto first = text.find_first_not_of(" \t\r"), last = text.find_last_not_of(" \t\r");
    return first == std::string::npos ? "" : text.substr(first, last - first + 1);
  }

  std::filesystem::path directory_;
  std::chrono::nanoseconds interval_;
  sluice::Labels labels_;
  int inotify_ = -1;
  std::map<std::string, Workload> workloads_;  // by file name
};
