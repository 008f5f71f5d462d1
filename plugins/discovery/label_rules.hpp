// The labels of a discovered target: what discovery itself knows (facts and captures) plus what the
// operator configured, whose values may refer to them.
//
//   labels = { class = "vm", vm_id = "$interface", shard = "${tenant}-a", price = "5$$" }
//
// A reference that the matching pattern did not capture leaves that label out: an empty label would
// match wirings that ask for it.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::discovery {

using Labels = std::map<std::string, std::string>;

class LabelRules {
 public:
  LabelRules() = default;
  // `facts`: names that discovery sets itself; an operator cannot redefine them. `captures`: names
  // that some pattern captures. Throws std::invalid_argument, naming the label and the remedy.
  LabelRules(const std::vector<std::pair<std::string, std::string>>& configured,
             const std::vector<std::string>& facts, const std::vector<std::string>& captures);

  // `known`: facts and captures of one target. Returns them and the configured labels.
  [[nodiscard]] Labels resolve(const Labels& known) const;

 private:
  struct Part {
    bool is_reference = false;
    std::string text;
  };
  struct Rule {
    std::string key;
    std::vector<Part> parts;
  };
  [[nodiscard]] static std::vector<Part> parse(const std::string& key, std::string_view value);

  std::vector<Rule> rules_;
};

}  // namespace sluice::discovery
