// A core that has nothing to give: for loading plugins where nothing is to be attached (--check).
#pragma once

#include <cerrno>

#include "attachments/core.hpp"

namespace sluice {

class ClosedCore final : public Core {
 public:
  Result<AttachmentId> attach(const std::string&, const Target&, const Labels&) override {
    return closed();
  }
  Status detach(const std::string&, AttachmentId, const std::string&) override { return closed(); }
  Status relabel(const std::string&, AttachmentId, const Labels&) override { return closed(); }
  Status listed(const std::string&) override { return closed(); }
  Result<Applied> replace_layer(const std::string&, AttachmentId, Layer) override {
    return closed();
  }
  Result<Applied> update_layer(const std::string&, AttachmentId, Generation, std::vector<Rule>,
                               std::vector<Rule>) override {
    return closed();
  }
  Result<Applied> withdraw_layer(const std::string&, AttachmentId) override { return closed(); }
  Status replace_layers(const std::string&, std::vector<LayerChange>) override { return closed(); }
  Status learn(const std::string&, AttachmentId, const NamePush&) override { return closed(); }
  Status revoke(const std::string&, AttachmentId, std::span<const Address>) override {
    return closed();
  }
  Result<Counters> counters(AttachmentId) override { return closed(); }
  std::vector<AttachmentInfo> list() override { return {}; }
  std::vector<AttachmentInfo> attachments_of(const std::string&) override { return {}; }

 private:
  static std::unexpected<Error> closed() {
    return fail_with(ESHUTDOWN, "the host is only checking its configuration");
  }
};

}  // namespace sluice
