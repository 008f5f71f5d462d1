// The static plugin as its host sees it: what reaches which attachment, and what does not.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "static/plugin.hpp"

#include <doctest/doctest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>
#include <sluice/fake_host.hpp>

#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "unit/config/folder.hpp"

using namespace sluice;
using namespace sluice::static_policy;
using namespace std::chrono_literals;
namespace fs = std::filesystem;

namespace {

std::string policy(const std::string& name, const std::string& match, const std::string& cidrs,
                   const std::string& more = "") {
  return "[[policy]]\nname = \"" + name + "\"\nmatch = { " + match +
         " }\nmode = \"allowlist\"\n[[policy.allow]]\ncidrs = [" + cidrs + "]\n" + more;
}
const std::string kVm = "class = \"vm\"";
const std::string kTen = "\"10.0.0.0/8\"", kOther = "\"192.0.2.0/24\"";

// FakeHost refuses all calls of a service or the next ones; to refuse the third, one stands
// between.
struct {
  sluice_policy_services services{};
  decltype(sluice_policy_services::replace_layers) real = nullptr;
  std::size_t refused_at = 0, calls = 0;
} between;

int refusing_replace_layers(sluice_host* host, const sluice_attachment* ids,
                            const sluice_layer* layers, std::size_t count,
                            std::size_t* failed_index, sluice_applied* applied) {
  if (between.refused_at != 0 && ++between.calls % between.refused_at == 0) {
    *failed_index = 0;
    return -ENOSPC;
  }
  return between.real(host, ids, layers, count, failed_index, applied);
}

const sluice_plugin& with_patched_services() {
  static sluice_plugin table = sdk::detail::PluginTable<StaticPlugin>::value;
  between = {};
  table.create = [](const sluice_services* services, const sluice_config* config, void** self,
                    char* message, std::size_t capacity) {
    between.services = *services->policy;
    between.real = std::exchange(between.services.replace_layers, &refusing_replace_layers);
    sluice_services mine = *services;
    mine.policy = &between.services;
    return sdk::detail::PluginTable<StaticPlugin>::value.create(&mine, config, self, message,
                                                                capacity);
  };
  return table;
}

// What is said by replace_layer, as --check's host would hear it.
std::vector<std::string> shown;
const sluice_plugin& with_shown_layer() {
  static sluice_plugin table = sdk::detail::PluginTable<StaticPlugin>::value;
  table.create = [](const sluice_services* services, const sluice_config* config, void** self,
                    char* message, std::size_t capacity) {
    static sluice_policy_services mine = *services->policy;
    mine.replace_layer = [](sluice_host*, sluice_attachment id, const sluice_layer* layer,
                            sluice_applied*) {
      for (std::size_t i = 0; i < layer->rule_count; ++i)
        shown.push_back(std::to_string(id) + ": " +
                        std::string(layer->rules[i].domain.data, layer->rules[i].domain.length));
      return 0;
    };
    sluice_services all = *services;
    all.policy = &mine;
    return sdk::detail::PluginTable<StaticPlugin>::value.create(&all, config, self, message,
                                                                capacity);
  };
  return table;
}

// A host with the plugin on a folder of its own: policies.d, state.
struct Stage {
  test::Folder folder;
  sdk::FakeHost host;

  Stage() {
    fs::create_directory(folder.path() / "policies.d");
    host.set_config_directory(folder.path().string());
    host.set_state_directory((folder.path() / "state").string());
    host.configure("policies", std::vector<std::string>{"policies.d/*.toml"});
    host.configure("presets_path", std::vector<std::string>{"presets"});
  }
  void write(const std::string& name, const std::string& text) const {
    folder.write("policies.d/" + name, text);
  }
  void replace(const std::string& name, const std::string& text) const {
    folder.replace("policies.d/" + name, text);
  }
  // Written a minute ago.
  void age(const std::string& name) const {
    fs::last_write_time(folder.path() / "policies.d" / name,
                        fs::file_time_type::clock::now() - 1min);
  }
  void start() {
    host.create(with_patched_services());
    host.start();
    settle();
    host.forget_calls();
  }
  // What the files' changes set off, without waiting.
  void settle() {
    while (host.run_ready_fds() > 0 || !host.timers().empty()) host.advance(3s);
  }
  void add(std::uint64_t id, sdk::Labels labels) {
    host.add_attachment({.id = {id},
                         .target = sdk::InterfaceTarget{.name = "tap" + std::to_string(id),
                                                        .ifindex = static_cast<unsigned>(id)},
                         .labels = std::move(labels),
                         .discovered_by = "taps",
                         .state = "filtering"});
  }
  void relabel(std::uint64_t id, sdk::Labels labels) {
    host.change_attachment({.id = {id},
                            .target = sdk::InterfaceTarget{.name = "tap" + std::to_string(id),
                                                           .ifindex = static_cast<unsigned>(id)},
                            .labels = std::move(labels),
                            .discovered_by = "taps",
                            .state = "filtering"});
  }
  // The prefixes in force on an attachment, "none" without a layer.
  [[nodiscard]] std::string layer(std::uint64_t id) const {
    const auto at = host.layers().find({id});
    if (at == host.layers().end()) return "none";
    std::string out;
    if (at->second.rules.size() > 10) return std::to_string(at->second.rules.size()) + " rules";
    for (const auto& rule : at->second.rules)
      out += (out.empty() ? "" : " ") + (rule.prefix ? rule.prefix->text() : rule.domain);
    return out;
  }
  static void refuse_replace_layers_each(std::size_t call) {
    between.refused_at = call;
    between.calls = 0;
  }
  [[nodiscard]] std::size_t changes() const {
    return host.count_calls("replace") + host.count_calls("withdraw");
  }
  [[nodiscard]] std::string said(sdk::LogLevel level) const {
    std::string out;
    for (const auto& line : host.lines())
      if (line.level == level) out += line.text + "\n";
    return out;
  }
  [[nodiscard]] bool has_said(sdk::LogLevel level, const std::string& text) const {
    return said(level).find(text) != std::string::npos;
  }
};

// A user namespace has limits of its own, so that this machine's stay as they are.
bool set_limit(const std::string& name, int value) {
  std::ofstream limit("/proc/sys/user/" + name);
  limit << value << std::endl;
  return limit.good();
}

// Runs in a process of its own, in a new user namespace. 0: all well; 77: there are none here.
int in_user_namespace(const std::function<int()>& work) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    if (::unshare(CLONE_NEWUSER) != 0) ::_exit(77);
    std::ofstream("/proc/self/setgroups") << "deny";
    std::ofstream("/proc/self/uid_map") << "0 0 1";
    std::ofstream("/proc/self/gid_map") << "0 0 1";
    ::_exit(work());
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

}  // namespace

TEST_CASE("an attachment gets the policies that match its labels, and no other") {
  Stage stage;
  stage.write("a.toml",
              policy("vms", kVm, kTen) + policy("acme", kVm + ", tenant = \"ac*\"", kOther));
  stage.start();
  stage.add(1, {{"class", "vm"}});
  stage.add(2, {{"class", "vm"}, {"tenant", "acme"}});
  stage.add(3, {{"class", "container"}});
  CHECK(stage.layer(1) == "10.0.0.0/8");
  CHECK(stage.layer(2) == "10.0.0.0/8 192.0.2.0/24");
  CHECK(stage.layer(3) == "none");
  CHECK(stage.host.layers().at({1}).mode == sdk::Mode::allowlist);
  CHECK(stage.host.layers().at({1}).rules[0].name == "vms:allow:1");
}

TEST_CASE("attachments that exist at start are spoken for") {
  Stage stage;
  stage.write("a.toml", policy("vms", kVm, kTen));
  stage.add(1, {{"class", "vm"}});
  stage.add(2, {{"class", "x"}});
  stage.start();
  CHECK(stage.layer(1) == "10.0.0.0/8");
  CHECK(stage.layer(2) == "none");
}

TEST_CASE("an attachment without policy loses what an earlier instance said") {
  Stage stage;
  stage.start();
  stage.add(1, {});
  CHECK(stage.host.count_calls("withdraw_layer 1") == 1);
}

TEST_CASE("new labels bring another policy; the same labels bring nothing") {
  Stage stage;
  stage.write("a.toml", policy("vms", kVm, kTen) + policy("jobs", "class = \"job\"", kOther));
  stage.start();
  stage.add(1, {{"class", "vm"}});
  stage.host.forget_calls();
  stage.relabel(1, {{"class", "vm"}, {"new", "label"}});
  CHECK(stage.changes() == 0);
  stage.relabel(1, {{"class", "job"}});
  CHECK(stage.layer(1) == "192.0.2.0/24");
  stage.relabel(1, {});
  CHECK(stage.layer(1) == "none");
}

TEST_CASE("a changed file reaches the attachments whose policy changed, in one call") {
  Stage stage;
  stage.write("a.toml", policy("vms", kVm, kTen));
  stage.write("b.toml", policy("jobs", "class = \"job\"", kTen));
  stage.start();
  stage.add(1, {{"class", "vm"}});
  stage.add(2, {{"class", "vm"}});
  stage.add(3, {{"class", "job"}});
  stage.host.forget_calls();

  SUBCASE("written in place") {
    stage.write("a.toml", policy("vms", kVm, kOther));
  }
  SUBCASE("replaced by rename") {
    stage.replace("a.toml", policy("vms", kVm, kOther));
  }
  SUBCASE("removed, and written under another name") {
    fs::remove(stage.folder.path() / "policies.d/a.toml");
    stage.write("z.toml", policy("vms", kVm, kOther));
  }
  stage.settle();
  CHECK(stage.layer(1) == "192.0.2.0/24");
  CHECK(stage.layer(2) == "192.0.2.0/24");
  CHECK(stage.layer(3) == "10.0.0.0/8");
  CHECK(stage.host.count_calls("replace_layers (2 layers)") == 1);
  CHECK(stage.changes() == 1);
}

TEST_CASE("many writes are one reload, and a stream of them is not waited out for ever") {
  Stage stage;
  stage.write("a.toml", policy("vms", kVm, kTen));
  stage.start();
  stage.add(1, {{"class", "vm"}});
  stage.write("a.toml", policy("vms", kVm, kOther));
  stage.host.run_ready_fds();
  stage.host.advance(150ms);
  CHECK(stage.layer(1) == "10.0.0.0/8");
  stage.write("a.toml", policy("vms", kVm, "\"198.51.100.0/24\""));
  stage.host.run_ready_fds();
  stage.host.advance(150ms);
  CHECK(stage.layer(1) == "10.0.0.0/8");
  stage.host.advance(50ms);
  CHECK(stage.layer(1) == "198.51.100.0/24");

  stage.write("a.toml", policy("vms", kVm, kTen));
  for (int i = 0; i < 20; ++i) {
    stage.write("unrelated.txt", std::to_string(i));
    stage.host.run_ready_fds();
    stage.host.advance(100ms);
  }
  CHECK(stage.layer(1) == "10.0.0.0/8");
}

TEST_CASE("a file that is being written is not taken, and the others wait for it") {
  Stage stage;
  stage.folder.write("lists/bad.txt", "10.0.0.0/8\n");
  stage.write("a.toml",
              "[[policy]]\nname = \"p\"\nmatch = {}\n[[policy.deny]]\ncidr_files = "
              "[\"../lists/bad.txt\"]\n");
  const auto list = stage.folder.path() / "lists/bad.txt";
  std::ofstream out;
  const auto write_half = [&] {
    out.open(list);
    out << "172.16.0.0/12\n10.20.30.4" << std::flush;
    stage.host.run_ready_fds();
  };
  SUBCASE("it is taken when it is closed") {
    stage.start();
    stage.add(1, {});
    write_half();
    CHECK(stage.host.timers().empty());  // nothing else waits: for as long as it takes
    stage.write("b.toml", policy("more", "", kOther));
    stage.host.run_ready_fds();
    stage.host.advance(20s);
    CHECK(stage.layer(1) == "10.0.0.0/8");
    out << "0\n";
    out.close();
    stage.host.run_ready_fds();
    stage.host.advance(200ms);
    CHECK(stage.layer(1) == "172.16.0.0/12 10.20.30.40/32 192.0.2.0/24");
    CHECK_FALSE(stage.has_said(sdk::LogLevel::warning, "bad.txt"));
  }
  SUBCASE("but others do not wait for ever") {
    stage.start();
    stage.add(1, {});
    write_half();
    stage.write("b.toml", policy("more", "", kOther));
    stage.host.run_ready_fds();
    stage.host.advance(29s);
    CHECK(stage.layer(1) == "10.0.0.0/8");
    stage.host.advance(2s);
    CHECK(stage.layer(1) == "172.16.0.0/12 10.20.30.4/32 192.0.2.0/24");
    CHECK(stage.has_said(sdk::LogLevel::warning, list.string() + " is still being written"));
  }
  SUBCASE("nor are its faults told") {
    stage.start();
    stage.add(1, {});
    out.open(stage.folder.path() / "policies.d/b.toml");
    stage.host.run_ready_fds();
    stage.host.advance(1s);
    out << "[[pol" << std::flush;
    stage.host.run_ready_fds();
    stage.host.advance(1s);
    CHECK(stage.said(sdk::LogLevel::error).empty());
  }
  SUBCASE("new options wait too") {
    stage.start();
    stage.add(1, {});
    write_half();
    stage.folder.write("other/b.toml",
                       policy("more", "", kOther, "cidr_files = [\"../lists/bad.txt\"]\n"));
    stage.host.configure("policies", std::vector<std::string>{"other/*.toml"});
    CHECK(stage.host.reconfigure());
    stage.host.advance(1s);
    CHECK(stage.layer(1) == "10.0.0.0/8");
    out.close();
    stage.settle();
    CHECK(stage.layer(1) == "192.0.2.0/24 172.16.0.0/12 10.20.30.4/32");
  }
  SUBCASE("a start waits for nobody") {
    stage.add(1, {});
    write_half();
    stage.host.create<StaticPlugin>();
    stage.host.start();
    CHECK(stage.layer(1) == "172.16.0.0/12 10.20.30.4/32");
    out << "0\n" << std::flush;
    out.close();
    stage.settle();
    CHECK(stage.layer(1) == "172.16.0.0/12 10.20.30.40/32");
  }
}

TEST_CASE("an invalid file changes nothing and says why; mended, it counts") {
  Stage stage;
  stage.write("a.toml", policy("vms", kVm, kTen));
  stage.start();
  stage.add(1, {{"class", "vm"}});
  stage.host.forget_calls();

  stage.write("a.toml", policy("vms", kVm, kOther));
  stage.write("b.toml", policy("bad", "", "\"10.0.0.1/8\"") + "mood = 1\n");
  stage.settle();
  CHECK(stage.layer(1) == "10.0.0.0/8");
  CHECK(stage.changes() == 0);
  const auto file = (stage.folder.path() / "policies.d/b.toml").string();
  CHECK(stage.has_said(sdk::LogLevel::error,
                       file + ":6:10: cidrs: \"10.0.0.1/8\" has host bits set; write 10.0.0.0/8"));
  CHECK(stage.has_said(sdk::LogLevel::error, file + ":7:1: an allow rule: unknown key \"mood\""));
  CHECK(stage.has_said(sdk::LogLevel::error, "policies are not reloaded"));
  stage.add(2, {{"class", "vm"}});
  CHECK(stage.layer(2) == "10.0.0.0/8");

  stage.write("b.toml", policy("good", "class = \"none\"", kTen));
  stage.settle();
  CHECK(stage.layer(1) == "192.0.2.0/24");
  CHECK(stage.layer(2) == "192.0.2.0/24");
}

TEST_CASE("with an invalid file the plugin does not start, and says why") {
  Stage stage;
  stage.write("a.toml", policy("vms", kVm, "\"10.0.0.1/8\""));
  stage.host.create<StaticPlugin>();
  std::string message;
  try {
    stage.host.start();
  } catch (const sdk::Error& error) {
    message = error.message();
  }
  CHECK(message.find("a.toml:6:10: cidrs:") != std::string::npos);
}

TEST_CASE("a removed file withdraws its policies, a new one brings them") {
  Stage stage;
  stage.write("a.toml", policy("vms", kVm, kTen));
  stage.start();
  stage.add(1, {{"class", "vm"}});
  fs::remove(stage.folder.path() / "policies.d/a.toml");
  stage.settle();
  CHECK(stage.layer(1) == "none");
  CHECK(stage.has_said(sdk::LogLevel::warning, "no file matches"));
  stage.write("new.toml", policy("vms", kVm, kOther));
  stage.settle();
  CHECK(stage.layer(1) == "192.0.2.0/24");
}

TEST_CASE("a directory that comes later, and one that is swapped by a symbolic link") {
  Stage stage;
  fs::remove_all(stage.folder.path() / "policies.d");
  stage.start();
  CHECK(stage.has_said(sdk::LogLevel::warning, "no file matches"));
  stage.add(1, {{"class", "vm"}});
  CHECK(stage.layer(1) == "none");

  stage.folder.write("v1/a.toml", policy("vms", kVm, kTen));
  stage.folder.write("v2/a.toml", policy("vms", kVm, kOther));
  fs::create_symlink("v1", stage.folder.path() / "policies.d");
  stage.settle();
  CHECK(stage.layer(1) == "10.0.0.0/8");
  fs::create_symlink("v2", stage.folder.path() / "next");
  fs::rename(stage.folder.path() / "next", stage.folder.path() / "policies.d");
  stage.settle();
  CHECK(stage.layer(1) == "192.0.2.0/24");
  stage.folder.write("v2/a.toml", policy("vms", kVm, "\"198.51.100.0/24\""));
  stage.settle();
  CHECK(stage.layer(1) == "198.51.100.0/24");
}

TEST_CASE("a file that is a symbolic link is followed, through the swap of any link on the way") {
  Stage stage;
  // As a mounted ConfigMap: a.toml -> ..data/a.toml, ..data -> ..1
  stage.folder.write("policies.d/..1/a.toml", policy("vms", kVm, kTen));
  stage.folder.write("policies.d/..2/a.toml", policy("vms", kVm, kOther));
  const auto here = stage.folder.path() / "policies.d";
  fs::create_symlink("..1", here / "..data");
  fs::create_symlink("..data/a.toml", here / "a.toml");
  stage.start();
  stage.add(1, {{"class", "vm"}});
  CHECK(stage.layer(1) == "10.0.0.0/8");
  fs::create_symlink("..2", here / "..tmp");
  fs::rename(here / "..tmp", here / "..data");
  stage.settle();
  CHECK(stage.layer(1) == "192.0.2.0/24");
}

TEST_CASE("lists and presets are watched too, also those that were missing") {
  Stage stage;
  stage.folder.write("lists/bad.txt", "10.0.0.0/8\n");
  stage.folder.write("presets/mine.toml", "[[allow]]\ncidrs = [\"192.0.2.0/24\"]\n");
  const std::string text =
      "[[policy]]\nname = \"p\"\nmatch = {}\npresets = [\"mine\"]\n[[policy.deny]]\ncidr_files = "
      "[\"../lists/bad.txt\"]\n";
  stage.write("a.toml", text);
  stage.start();
  stage.add(1, {});
  CHECK(stage.layer(1) == "10.0.0.0/8 192.0.2.0/24");
  stage.folder.write("lists/bad.txt", "172.16.0.0/12\n");
  stage.settle();
  CHECK(stage.layer(1) == "172.16.0.0/12 192.0.2.0/24");
  fs::remove(stage.folder.path() / "presets/mine.toml");
  stage.settle();
  CHECK(stage.layer(1) == "172.16.0.0/12 192.0.2.0/24");
  CHECK(stage.has_said(sdk::LogLevel::error, "a.toml:4:12: preset \"mine\" does not exist"));
  stage.folder.write("presets/mine.toml", "[[allow]]\ncidrs = [\"198.51.100.0/24\"]\n");
  stage.settle();
  CHECK(stage.layer(1) == "172.16.0.0/12 198.51.100.0/24");
}

TEST_CASE("a set that the host refuses is not taken, and what is in force stays") {
  Stage stage;
  stage.write("a.toml", policy("vms", kVm, kTen));
  stage.start();
  stage.add(1, {{"class", "vm"}});
  stage.host.refuse("replace_layers", ENOSPC, "the heap is full", sdk::Error::kNoRule, 0);
  stage.write("a.toml", policy("vms", kVm, kOther));
  stage.host.run_ready_fds();
  stage.host.advance(1min);
  CHECK(stage.layer(1) == "10.0.0.0/8");
  CHECK(stage.said(sdk::LogLevel::error) ==
        "policies are not reloaded, the ones in force stay: tap1: policy vms: the heap is full; "
        "tried again every 30 s\n");  // said once
  CHECK(stage.host.count_calls("replace_layers") >= 2);
  stage.add(2, {{"class", "vm"}});
  CHECK(stage.layer(2) == "10.0.0.0/8");  // the set in force is the old one for all
  stage.host.allow("replace_layers");
  SUBCASE("by itself") {
    stage.host.advance(30s);
  }
  SUBCASE("with the next change of any file") {
    stage.write("touch.toml", policy("x", "class = \"none\"", kTen));
    stage.host.run_ready_fds();
    stage.host.advance(3s);
  }
  CHECK(stage.layer(1) == "192.0.2.0/24");
  CHECK(stage.layer(2) == "192.0.2.0/24");
  CHECK(stage.host.timers().empty());
}

TEST_CASE("what was seen to change while a refused set was read is not left for the next try") {
  Stage stage;
  stage.write("a.toml", policy("vms", kVm, kTen));
  stage.start();
  stage.add(1, {{"class", "vm"}});
  stage.host.refuse("replace_layers", ENOSPC, "the heap is full", sdk::Error::kNoRule, 0);
  // A directory that was not watched so far: what changed there meanwhile may have been missed.
  stage.folder.write("lists/good.txt", "192.0.2.0/24\n");
  stage.write("a.toml",
              "[[policy]]\nname = \"vms\"\nmatch = { class = \"vm\" }\n[[policy.allow]]\n"
              "cidr_files = [\"../lists/good.txt\"]\n");
  stage.host.run_ready_fds();
  stage.host.advance(250ms);
  REQUIRE(stage.host.count_calls("replace_layers") == 1);
  CHECK(stage.layer(1) == "10.0.0.0/8");
  stage.host.allow("replace_layers");
  stage.host.advance(250ms);
  CHECK(stage.layer(1) == "192.0.2.0/24");
}

TEST_CASE("an attachment that goes during the change does not hold up the others") {
  Stage stage;
  stage.write("a.toml", policy("vms", kVm, kTen));
  stage.start();
  stage.add(1, {{"class", "vm"}});
  stage.add(2, {{"class", "vm"}});
  stage.host.refuse("replace_layers", ENOENT, "tap1 is gone", sdk::Error::kNoRule, 0);
  stage.write("a.toml", policy("vms", kVm, kOther));
  // Both are refused as gone, one after the other: the change itself is done.
  stage.settle();
  CHECK(stage.host.count_calls("replace_layers (2 layers)") == 1);
  CHECK(stage.host.count_calls("replace_layers (1 layers)") == 1);
  CHECK_FALSE(stage.has_said(sdk::LogLevel::error, "gone"));
}

TEST_CASE("a refused attachment is reported, stays as it was and is tried again") {
  Stage stage;
  stage.write("a.toml", policy("vms", kVm, kTen));
  stage.start();
  stage.host.refuse("replace_layer", ENOSPC, "the heap is full");
  stage.add(1, {{"class", "vm"}});
  stage.host.advance(20s);
  stage.add(2, {{"class", "vm"}});
  CHECK(stage.said(sdk::LogLevel::error) ==
        "tap1: policy vms is refused, what is in force stays: the heap is full; tried again every "
        "30 s\n"
        "tap2: policy vms is refused, what is in force stays: the heap is full; tried again every "
        "30 s\n");
  SUBCASE("after a while") {
    stage.host.advance(1min);
    CHECK(stage.host.count_calls("replace_layer 1") == 3);
    stage.host.allow("replace_layer");
    stage.host.advance(30s);
    CHECK(stage.layer(1) == "10.0.0.0/8");
    CHECK(stage.layer(2) == "10.0.0.0/8");
    CHECK(stage.said(sdk::LogLevel::error).find("tap1") == 0);  // said once
    CHECK(stage.said(sdk::LogLevel::error).rfind("tap1") == 0);
    CHECK(stage.has_said(sdk::LogLevel::info, "tap1: what was refused is in force now"));
    CHECK(stage.host.timers().empty());
  }
  SUBCASE("with the next change of any file") {
    stage.host.allow("replace_layer");
    stage.write("b.toml", policy("x", "class = \"none\"", kTen));
    stage.host.run_ready_fds();
    stage.host.advance(200ms);
    CHECK(stage.layer(1) == "10.0.0.0/8");
    stage.host.forget_calls();
    stage.settle();
    CHECK(stage.changes() == 0);
  }
  SUBCASE("not when it is gone") {
    stage.host.refuse("replace_layer", ENOENT, "it is gone");
    stage.host.advance(30s);
    CHECK(stage.host.timers().empty());
    CHECK_FALSE(stage.has_said(sdk::LogLevel::error, "gone"));
  }
  SUBCASE("also when nothing fits it any more") {
    stage.host.refuse("withdraw_layer", ENOMEM, "no memory");
    stage.relabel(1, {});
    CHECK(stage.has_said(sdk::LogLevel::error, "tap1: its policy is not withdrawn: no memory"));
    stage.host.allow("withdraw_layer");
    stage.host.forget_calls();
    stage.host.advance(10s);
    CHECK(stage.host.count_calls("withdraw_layer 1") == 1);
  }
}

TEST_CASE("sets too large for one call are all or nothing too") {
  Stage stage;
  std::string list;
  for (unsigned i = 0; i < 150'000; ++i)
    list += "10." + std::to_string(i >> 16) + "." + std::to_string(i >> 8 & 255) + "." +
            std::to_string(i & 255) + "\n";
  stage.folder.write("list.txt", list);
  const std::string big =
      "[[policy]]\nname = \"big\"\nmatch = {}\n[[policy.deny]]\ncidr_files = "
      "[\"../list.txt\"]\n";
  stage.write("a.toml", policy("big", "", kTen));
  stage.start();
  stage.add(1, {});
  stage.add(2, {});
  stage.add(3, {});
  stage.host.forget_calls();

  stage.write("a.toml", big);
  stage.settle();
  CHECK(stage.host.count_calls("replace_layers (1 layers)") == 3);
  CHECK(stage.host.layers().at({3}).rules.size() == 150'000);

  // The third call is refused: what the two before it did is taken back.
  stage.write("a.toml", policy("big", "", kOther));
  stage.settle();
  REQUIRE(stage.layer(3) == "192.0.2.0/24");
  stage.refuse_replace_layers_each(3);
  stage.write("a.toml", big);
  stage.host.run_ready_fds();
  stage.host.advance(3s);
  CHECK(stage.has_said(sdk::LogLevel::error, "policies are not reloaded"));
  for (const std::uint64_t id : {1, 2, 3}) CHECK(stage.layer(id) == "192.0.2.0/24");
  stage.refuse_replace_layers_each(0);
  stage.settle();  // tried again
  for (const std::uint64_t id : {1, 2, 3}) CHECK(stage.layer(id) == "150000 rules");
}

TEST_CASE("a TTL counts from the first load, over reloads and restarts") {
  const std::string text = policy("short", "", kTen, "ttl = \"1h\"\n");
  const auto expiry = [](const Stage& stage, std::uint64_t id) {
    return *stage.host.layers().at({id}).rules.at(0).expires;
  };
  Stage stage;
  stage.write("a.toml", text);
  const auto started = stage.host.now();
  stage.start();
  stage.add(1, {});
  CHECK(expiry(stage, 1) == started + 1h);
  stage.host.advance(10min);
  stage.replace("a.toml", "# touched\n" + text);
  stage.settle();
  stage.add(2, {});
  CHECK(expiry(stage, 2) == started + 1h);
  CHECK(fs::exists(stage.folder.path() / "state/ttl-beginnings"));

  stage.replace("a.toml", policy("short", "", kOther, "ttl = \"1h\"\n"));
  stage.host.run_ready_fds();
  stage.host.advance(200ms);
  CHECK(expiry(stage, 1) == stage.host.now() + 1h);
  const auto changed = stage.host.now();
  stage.host.stop();
  stage.host.destroy();

  // Another instance on the same state: wall time has hardly moved, and the end is the same.
  stage.host.forget_calls();
  stage.host.create<StaticPlugin>();
  stage.host.start();
  CHECK(expiry(stage, 1) >= changed + 1h - 30s);
  CHECK(expiry(stage, 1) <= stage.host.now() + 1h);
}

TEST_CASE("without TTLs nothing is written to the state directory") {
  Stage stage;
  stage.write("a.toml", policy("vms", kVm, kTen));
  stage.start();
  CHECK_FALSE(fs::exists(stage.folder.path() / "state"));
}

TEST_CASE("new options take other files; faulty ones are refused and the old stay") {
  Stage stage;
  stage.write("a.toml", policy("vms", kVm, kTen));
  stage.folder.write("other/b.toml", policy("vms", kVm, kOther));
  stage.folder.write("broken/c.toml", "nonsense");
  stage.start();
  stage.add(1, {{"class", "vm"}});
  stage.host.configure("policies", std::vector<std::string>{"broken/*.toml"});
  CHECK_THROWS_AS(stage.host.reconfigure(), sdk::Error);
  CHECK(stage.layer(1) == "10.0.0.0/8");
  stage.host.configure("policies", std::vector<std::string>{"other/*.toml"});
  CHECK(stage.host.reconfigure());
  CHECK(stage.layer(1) == "192.0.2.0/24");
  stage.settle();
  stage.write("a.toml", policy("vms", kVm, kTen));
  stage.settle();
  CHECK(stage.layer(1) == "192.0.2.0/24");
  stage.folder.write("other/b.toml", policy("vms", kVm, "\"198.51.100.0/24\""));
  stage.settle();
  CHECK(stage.layer(1) == "198.51.100.0/24");
}

TEST_CASE("after refused options the old files are still watched") {
  Stage stage;
  stage.host.configure("policies", std::vector<std::string>{"policies.d/*.toml", "broken/*.toml"});
  fs::create_directory(stage.folder.path() / "broken");
  stage.write("a.toml", policy("vms", kVm, kTen));
  stage.start();
  stage.add(1, {{"class", "vm"}});
  stage.folder.write("broken/c.toml", "nonsense");
  stage.host.configure("policies", std::vector<std::string>{"broken/*.toml"});
  CHECK_THROWS_AS(stage.host.reconfigure(), sdk::Error);
  fs::remove(stage.folder.path() / "broken/c.toml");
  stage.settle();
  stage.write("a.toml", policy("vms", kVm, kOther));
  stage.settle();
  CHECK(stage.layer(1) == "192.0.2.0/24");
}

TEST_CASE(
    "without watches the files are loaded all the same, and read again until they are watched") {
  for (const auto* limit : {"max_inotify_watches", "max_inotify_instances"}) {
    CAPTURE(limit);
    const std::string sysctl = std::string("fs.inotify.max_user_") + (limit + sizeof "max_inotify");
    const int result = in_user_namespace([&] {
      Stage stage;
      stage.write("a.toml", policy("vms", kVm, kTen));
      if (!set_limit(limit, 0)) return 77;
      stage.host.create<StaticPlugin>();
      stage.host.start();
      stage.add(1, {{"class", "vm"}});
      if (stage.layer(1) != "10.0.0.0/8") return 1;
      // By the clock of the files: what was just written may be half of it.
      stage.write("a.toml", policy("vms", kVm, kOther));
      stage.host.advance(10s);
      if (stage.layer(1) != "10.0.0.0/8") return 2;
      stage.age("a.toml");
      stage.host.advance(10s);
      if (stage.layer(1) != "192.0.2.0/24") return 9;

      stage.write("a.toml", "nonsense");
      stage.age("a.toml");
      stage.host.advance(1min);
      if (stage.layer(1) != "192.0.2.0/24") return 3;
      std::size_t unwatched = 0, faulty = 0;
      for (const auto& line : stage.host.lines()) {
        unwatched += line.text.find("sysctl " + sysctl + "=N") != std::string::npos;
        faulty += line.text.find("policies are not reloaded") != std::string::npos;
      }
      if (unwatched != 1) return 4;
      if (faulty != 1) return 5;

      if (!set_limit(limit, 100)) return 6;
      stage.settle();
      if (!stage.has_said(sdk::LogLevel::info, "all policy files are watched again")) return 7;
      stage.write("a.toml", policy("vms", kVm, kTen));
      stage.settle();
      return stage.layer(1) == "10.0.0.0/8" ? 0 : 8;
    });
    if (result == 77) {
      MESSAGE("not run: no user namespace here");
      return;
    }
    CHECK(result == 0);
  }
}

TEST_CASE("check reports every fault and starts nothing") {
  Stage stage;
  stage.write("a.toml", policy("one", "", "\"10.0.0.1/8\""));
  stage.write("b.toml", "");
  stage.host.create<StaticPlugin>();
  const auto errors = stage.host.check();
  REQUIRE(errors.size() == 2);
  CHECK(errors[0].find("a.toml:6:10: cidrs: ") != std::string::npos);
  CHECK(errors[1].find("b.toml:1:1: holds no [[policy]]") != std::string::npos);
  CHECK(stage.host.calls().empty());
  fs::remove(stage.folder.path() / "policies.d/a.toml");
  fs::remove(stage.folder.path() / "policies.d/b.toml");
  CHECK(stage.host.check().empty());
  CHECK(stage.has_said(sdk::LogLevel::warning, "policies.d/*.toml: no file matches"));
}

TEST_CASE("check shows the host a name that is allowed, so that a missing resolver is found") {
  Stage stage;
  stage.write("a.toml", policy("one", "", kTen));
  stage.write("b.toml", policy("two", "", kOther, "[[policy.allow]]\ndomains = [\"pypi.org\"]\n"));
  shown = {};
  stage.host.create(with_shown_layer());
  CHECK(stage.host.check().empty());
  CHECK(shown == std::vector<std::string>{"0: pypi.org"});
}

TEST_CASE("after a resync every attachment is spoken for anew") {
  Stage stage;
  stage.write("a.toml", policy("vms", kVm, kTen));
  stage.start();
  stage.add(1, {{"class", "vm"}});
  stage.add(2, {});
  stage.host.forget_calls();
  stage.host.resync();
  CHECK(stage.host.count_calls("replace_layer 1") == 1);
  CHECK(stage.host.count_calls("withdraw_layer 2") == 1);
}

TEST_CASE("a removed attachment is forgotten") {
  Stage stage;
  stage.write("a.toml", policy("vms", kVm, kTen));
  stage.start();
  stage.add(1, {{"class", "vm"}});
  stage.host.remove_attachment({1}, "the interface is gone");
  stage.host.forget_calls();
  stage.write("a.toml", policy("vms", kVm, kOther));
  stage.settle();
  CHECK(stage.changes() == 0);
}
