// An AttachmentHost that keeps attachments in memory, fails on command, and records each call.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "discovery/keeper.hpp"

namespace sluice::discovery {

class ScriptedHost final : public AttachmentHost {
 public:
  struct Attached {
    WantedTarget target;
    Labels labels;
  };
  std::map<std::uint64_t, Attached> attachments;
  std::vector<std::string> calls;  // "attach tap0", "detach 1 (reason)", "relabel 1", "listed"
  std::vector<std::pair<LogLevel, std::string>> lines;
  std::uint64_t clock = 1'000'000'000;
  // Returns the code with which a call fails; 0: it succeeds.
  std::function<Answer(const WantedTarget&)> refuse_attach = [](const WantedTarget&) {
    return Answer{};
  };
  int detach_code = 0;
  int listed_calls = 0;

  Answer attach(const WantedTarget& target, const Labels& labels) override {
    calls.push_back("attach " + target.name);
    Answer answer = refuse_attach(target);
    if (answer.code != 0) return answer;
    for (auto& [id, attached] : attachments)
      if (same(attached.target, target)) {
        attached = {target, labels};
        return {0, id, {}};
      }
    attachments[++last_id_] = {target, labels};
    return {0, last_id_, {}};
  }
  Answer detach(std::uint64_t id, const std::string& reason) override {
    calls.push_back("detach " + std::to_string(id) + " (" + reason + ")");
    if (detach_code != 0) return {detach_code, 0, "detach fails"};
    return {attachments.erase(id) != 0 ? 0 : 2, 0, {}};
  }
  Answer relabel(std::uint64_t id, const Labels& labels) override {
    calls.push_back("relabel " + std::to_string(id));
    const auto at = attachments.find(id);
    if (at == attachments.end()) return {2, 0, "no such attachment"};
    at->second.labels = labels;
    return {};
  }
  Answer listed() override {
    calls.push_back("listed");
    ++listed_calls;
    return {};
  }
  void log(LogLevel level, const std::string& text) override { lines.emplace_back(level, text); }
  std::uint64_t now() override { return clock; }

  [[nodiscard]] std::size_t lines_at(LogLevel level) const {
    std::size_t count = 0;
    for (const auto& line : lines) count += line.first == level ? 1 : 0;
    return count;
  }
  // Names of what is attached, sorted, for whole-state comparisons.
  [[nodiscard]] std::vector<std::string> names() const {
    std::map<std::string, int> sorted;
    for (const auto& [id, attached] : attachments) sorted[attached.target.name]++;
    std::vector<std::string> result;
    for (const auto& [name, count] : sorted) result.insert(result.end(), count, name);
    return result;
  }

 private:
  static bool same(const WantedTarget& a, const WantedTarget& b) {
    return a.kind == b.kind && a.ifindex == b.ifindex && a.cgroup_id == b.cgroup_id;
  }
  std::uint64_t last_id_ = 0;
};

// Turns until nothing is left to do at once; the clock stands still.
inline void run_out(Keeper& keeper) {
  while (keeper.turn() == 0) {
  }
}

}  // namespace sluice::discovery
