#include "cgroups/plugin.hpp"

#include <cerrno>
#include <stdexcept>

namespace sluice::cgroups {
namespace {

using Strings = std::vector<std::string>;

constexpr std::uint64_t kWork = 1, kPoll = 2;
// One look costs some 15 us: a step stays within a few milliseconds, and other calls get their
// turn.
constexpr std::size_t kEventsPerStep = 512, kLooksPerStep = 256;

CgroupSelection selection_of(const sdk::Config& config) {
  try {
    return CgroupSelection(
        {.match = config.get<Strings>("match"),
         .exclude = config.get_or<Strings>("exclude", {}),
         .labels = config.get_or<std::vector<std::pair<std::string, std::string>>>("labels", {})});
  } catch (const std::invalid_argument& error) {
    throw sdk::Error(EINVAL, config.instance() + ": " + error.what());
  }
}

}  // namespace

CgroupsPlugin::CgroupsPlugin(const sdk::Config& config) : selection_(selection_of(config)) {}

void CgroupsPlugin::start() {
  hierarchy_ = std::make_unique<KernelHierarchy>(find_cgroup2());
  tree_ = std::make_unique<CgroupTree>(selection_, *hierarchy_, keeper_, host_);
  watch(hierarchy_->fd());
  tree_->relist();
  step();
}

void CgroupsPlugin::stop() {
  if (hierarchy_) unwatch(hierarchy_->fd());
}

void CgroupsPlugin::step() {
  const auto events = hierarchy_->events(kEventsPerStep);
  for (const auto& event : events) tree_->handle(event);
  if (tree_->is_unmounted())
    throw sdk::Error(ENODEV,
                     "the cgroup2 file system was unmounted; mount it again: mount -t cgroup2 none "
                     "/sys/fs/cgroup");
  // A full batch: more may lie read but not handed out, for which the fd is not readable any more.
  const bool more = tree_->work(kLooksPerStep) || events.size() >= kEventsPerStep;
  const std::uint64_t delay = keeper_.turn();
  if (more)
    set_timer(kWork, std::chrono::nanoseconds(0));
  else if (delay != discovery::Keeper::kIdle)
    set_timer(kWork, std::chrono::nanoseconds(delay));
  const std::uint64_t interval = tree_->poll_interval();
  if (interval == discovery::Keeper::kIdle || is_polling_) return;
  is_polling_ = true;
  set_timer(kPoll, std::chrono::nanoseconds(interval));
}

void CgroupsPlugin::on_fd(int /*fd*/, std::uint32_t /*events*/) {
  step();
}

void CgroupsPlugin::on_timer(std::uint64_t id) {
  if (id == kPoll) {
    is_polling_ = false;
    tree_->poll();
  }
  step();
}

void CgroupsPlugin::on_resync() {
  keeper_.reaffirm();
  tree_->relist();
  step();
}

}  // namespace sluice::cgroups
