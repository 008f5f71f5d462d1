// Attach until in force, detach, restart with many attachments, and the memory they take.
#include <bpf/bpf.h>
#include <net/if.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "bench/dataplane/sandbox.hpp"
#include "bench/dataplane/sections.hpp"
#include "bench/dataplane/sets.hpp"
#include "dataplane/tc_filter.hpp"

namespace sluice::bench {
namespace fs = std::filesystem;
namespace {

std::uint32_t ifindex_of(unsigned n) {
  return if_nametoindex(fmt::format("b{}", n).c_str());
}

void make_links(unsigned from, unsigned to) {
  const fs::path file = scratch() / "links";
  {
    std::ofstream out(file);
    for (unsigned i = from; i < to; ++i)
      out << fmt::format("link add b{0} type veth peer name p{0}\nlink set b{0} up\n", i);
  }
  shell("ip -batch " + file.string());
}

std::size_t resident() {
  std::ifstream file("/proc/self/statm");
  std::size_t total = 0, pages = 0;
  file >> total >> pages;
  return pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

// Kernel memory of the pinned maps, as fdinfo tells it.
std::size_t map_memory(const HostConfig& config) {
  std::size_t sum = 0;
  for (const auto& directory : fs::directory_iterator(config.bpffs))
    if (directory.path().filename().string().starts_with("maps-"))
      for (const auto& pin : fs::directory_iterator(directory)) {
        const Fd map(bpf_obj_get(pin.path().c_str()));
        std::ifstream info(fmt::format("/proc/self/fdinfo/{}", map.get()));
        for (std::string word; info >> word;)
          if (word == "memlock:") {
            std::size_t bytes = 0;
            info >> bytes;
            sum += bytes;
          }
      }
  return sum;
}

// Until the attachment has left clsact for TCX.
void wait_for_tcx(KernelDataPlane& plane, std::uint32_t ifindex) {
  for (int i = 0; i < 12000; ++i) {
    plane.poll({});
    if (need(plane.attach(InterfaceTarget{.ifindex = ifindex}, nullptr), "look").mechanism == "tcx")
      return;
    usleep(5000);
  }
  give_up("an attachment did not become a TCX link within a minute");
}

void one_at_a_time(const char* mechanism, unsigned count, double budget,
                   const PublishRequest& request) {
  const HostConfig config = host_config(mechanism);
  const auto plane = open_plane(config);
  std::vector<double> attach, detach;
  std::vector<std::uint32_t> slots;
  for (unsigned i = 0; i < count; ++i) {
    const std::uint32_t ifindex = ifindex_of(i);
    attach.push_back(timed([&] {
      slots.push_back(
          need(plane->attach(InterfaceTarget{.ifindex = ifindex}, &request), "attach").slot);
    }));
    if (config.tc_mechanism == "auto") wait_for_tcx(*plane, ifindex);
  }
  for (const std::uint32_t slot : slots)
    detach.push_back(timed([&] { need(plane->detach(slot), "detach"); }));
  const double p50 = quantile(attach, 0.5);
  row(fmt::format("interface, {}: attach, p50", mechanism), p50, budget,
      {{"p99", quantile(attach, 0.99)}, {"detach p50", median(detach)}});
  need(KernelDataPlane::detach_all(config), "detach_all");
}

// The kernel patches its own text when the first program of a kind comes to any cgroup, and when
// the last one goes (static keys, of cgroup_bpf_enabled_key[]): attaching beside another filtered
// cgroup costs a third of attaching the first.
void cgroups(unsigned count, const PublishRequest& request) {
  const HostConfig config = host_config("auto");
  const auto plane = open_plane(config);
  const auto attach = [&](const std::filesystem::path& directory) {
    return need(plane->attach(CgroupTarget{.path = cgroup_target(directory)}, &request), "attach");
  };
  const auto measure = [&](const char* which) {
    std::vector<double> attached, detached;
    for (unsigned i = 0; i < count; ++i) {
      const auto directory = cgroup(fmt::format("c{}", i));
      KernelAttachment made;
      attached.push_back(timed([&] { made = attach(directory); }));
      plane->poll({});
      detached.push_back(timed([&] { need(plane->detach(made.slot), "detach"); }));
      rmdir(directory.c_str());
    }
    row(fmt::format("cgroup{}: attach, p50", which), quantile(attached, 0.5), 200e3,
        {{"p99", quantile(attached, 0.99)}, {"detach p50", median(detached)}});
  };
  measure(", the host's first");
  attach(cgroup("first"));
  measure("");
  need(KernelDataPlane::detach_all(config), "detach_all");
}

void many(unsigned count, const PublishRequest& request) {
  const HostConfig config = host_config("auto");
  auto plane = open_plane(config);
  make_links(0, count);
  std::vector<std::uint32_t> links;
  for (unsigned i = 0; i < count; ++i) links.push_back(ifindex_of(i));
  plane->poll({});
  const std::size_t maps_before = map_memory(config), resident_before = resident();

  std::vector<double> each;
  const double whole = timed([&] {
    for (const std::uint32_t ifindex : links)
      each.push_back(timed([&] {
        [[maybe_unused]] const auto made =
            need(plane->attach(InterfaceTarget{.ifindex = ifindex}, &request), "attach");
      }));
  });
  const std::string name = fmt::format("{} interfaces at once, auto: ", count);
  row(name + "until all in force", whole, 0,
      {{"each p50", quantile(each, 0.5)}, {"p99", quantile(each, 0.99)}});
  row(name + "until all are TCX links", timed([&] { wait_for_tcx(*plane, links.back()); }), 0);

  const std::size_t maps_after = map_memory(config), resident_after = resident();
  const long cpus = sysconf(_SC_NPROCESSORS_CONF);
  // The tables that have a row for every possible attachment are paid for before the first one.
  const std::size_t tables = sizeof(sluice_slot) + 2 * sizeof(sluice_policy) +
                             sizeof(sluice_counters) * static_cast<std::size_t>(cpus);
  row_text("memory in maps per attachment, shared policy",
           fmt::format("{} B", tables + (maps_after - maps_before) / count),
           fmt::format("<= {} B", 1024 + 64 * cpus),
           fmt::format("{} B of tables, {} B grown; all maps {:.1f} MiB for up to {} attachments",
                       tables, (maps_after - maps_before) / count,
                       static_cast<double>(maps_after) / 1048576, config.max_attachments));
  row_text(
      "memory of the data plane's process per attachment",
      fmt::format("{} B", (resident_after - std::min(resident_after, resident_before)) / count),
      "<= 2048 B",
      fmt::format("resident {:.1f} MiB without, {:.1f} MiB with {}",
                  static_cast<double>(resident_before) / 1048576,
                  static_cast<double>(resident_after) / 1048576, count));

  // The daemon ends, and another one starts.
  plane.reset();
  std::vector<double> restarts, loads, updates;
  const auto features = need(probe_kernel(), "kernel");
  fs::path maps;
  for (const auto& directory : fs::directory_iterator(config.bpffs))
    if (directory.path().filename().string().starts_with("maps-")) maps = directory.path();
  for (int i = 0; i < 3; ++i) {
    loads.push_back(timed([&] {
      const auto again = need(probe_kernel(), "kernel");
      [[maybe_unused]] const auto loaded =
          need(Programs::load(maps, {}, config, again), "programs");
    }));
    const auto loaded = need(Programs::load(maps, {}, config, features), "programs");
    updates.push_back(timed([&] {
      for (const auto& pin : fs::directory_iterator(config.bpffs / "links")) {
        const bool from = pin.path().filename().string().ends_with("-from");
        const Fd link = need(open_link(pin.path()), "link");
        need(update_link(link.get(), loaded.program(from ? Program::tc_from : Program::tc_to)),
             "update");
      }
    }));
    restarts.push_back(timed([&] { plane = open_plane(config); }));
    if (plane->adopted().size() != count) give_up("not every attachment was adopted");
    plane.reset();
  }
  const double whole_restart = median(restarts), load = median(loads);
  row(fmt::format("restart with {}: adopting them", count), whole_restart - load, 100e6,
      {{"of it bare link updates", median(updates)}});
  row(fmt::format("restart with {}: whole", count), whole_restart, 0,
      {{"of it loading and verifying", load}});
}

}  // namespace

void attach_cost(const Options& options) {
  heading("Attach, restart, memory", "until in force; a policy of 1,000 prefixes, published first");
  shell("sysctl -q net.ipv6.conf.default.disable_ipv6=1");
  const CompiledPolicy policy = must_compile(layer_of(mixed_prefixes(1000, 4), Action::allow));
  const PublishRequest request{.mode = Mode::allowlist, .policy = &policy};
  const unsigned paced = options.quick ? 8 : 30, crowd = options.quick ? 100 : 1000;
  make_links(0, paced);
  one_at_a_time("auto", paced, 1e6, request);
  one_at_a_time("tcx", paced, 0, request);
  one_at_a_time("clsact", paced, 1e6, request);
  shell(fmt::format("for i in $(seq 0 {}); do ip link del b$i; done", paced - 1));
  cgroups(options.quick ? 50 : 300, request);
  many(crowd, request);
}

}  // namespace sluice::bench
