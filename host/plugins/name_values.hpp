// What plugins tell each other about names, kept on its way from one to the other: checked copies
// of the ABI's structs that own what they point to.
#pragma once

#include <sluice/plugin_abi.h>

#include <memory>
#include <string>
#include <vector>

#include "base/ids.hpp"
#include "base/result.hpp"

namespace sluice {

struct NameQuery {
  std::uint64_t id = 0;  // the asker's
  AttachmentId attachment;
  std::string name;
  std::uint16_t type = 0;

  [[nodiscard]] static Result<NameQuery> from(const sluice_query* raw);
};

class NameDecision {
 public:
  [[nodiscard]] static Result<std::shared_ptr<const NameDecision>> from(
      const sluice_decision_made* raw);
  // The host's own word: no opinion.
  [[nodiscard]] static std::shared_ptr<const NameDecision> none(std::string reason);
  [[nodiscard]] const sluice_decision_made* raw() const { return &raw_; }

 private:
  NameDecision() = default;
  std::vector<sluice_port_range> ports_;
  std::vector<sluice_address> addresses_;
  std::vector<sluice_prefix> ranges_;
  std::string reason_;
  sluice_decision_made raw_{};
};

class NameAnswer {
 public:
  [[nodiscard]] static Result<std::shared_ptr<const NameAnswer>> from(const sluice_answer* raw);
  [[nodiscard]] const sluice_answer* raw() const { return &raw_; }
  [[nodiscard]] AttachmentId attachment() const { return {raw_.attachment}; }

 private:
  NameAnswer() = default;
  std::string name_;
  std::vector<std::string> names_;
  std::vector<sluice_string> chain_;
  std::vector<sluice_answer_address> addresses_;
  sluice_answer raw_{};
};

// Reports of one call, in three allocations whatever their number.
class NameReports {
 public:
  [[nodiscard]] static Result<std::shared_ptr<const NameReports>> from(
      const sluice_query_report* raw, std::size_t count);
  [[nodiscard]] const sluice_query_report* data() const { return raw_.data(); }
  [[nodiscard]] std::size_t size() const { return raw_.size(); }

 private:
  NameReports() = default;
  [[nodiscard]] sluice_string keep(const sluice_string& text);

  std::string texts_;                      // reserved whole first: the reports point into it
  std::vector<sluice_address> addresses_;  // likewise
  std::vector<sluice_query_report> raw_;
};

}  // namespace sluice
