// SPDX-License-Identifier: Apache-2.0
// The plugin under FakeHost: no daemon, no root, no waiting. "lo" is the one interface that every
// host has.
#include <sluice/fake_host.hpp>

#include <cstdio>
#include <cstdlib>

#include "workload_files.hpp"

namespace {

void expect(bool what, const char* text) {
  if (what) return;
  std::fprintf(stderr, "not so: %s\n", text);
  std::exit(1);
}
#define EXPECT(what) expect((what), #what)

struct Scene {
  std::filesystem::path directory;
  sluice::FakeHost host;

  Scene() {
    std::string pattern = std::filesystem::temp_directory_path() / "workload-files-XXXXXX";
    EXPECT(::mkdtemp(pattern.data()) != nullptr);
    directory = pattern;
    host.configure("directory", directory.string());
    host.configure("labels", sluice::Labels{{"class", "vm"}});
  }
  ~Scene() { std::filesystem::remove_all(directory); }
  void write(const char* name, const char* text) { std::ofstream(directory / name) << text; }
  void look() { (void)host.run_ready_fds(std::chrono::seconds(10)); }
};

void files_become_attachments() {
  Scene scene;
  scene.write("vm-1", "# a guest\nlo\ntenant = acme\n");
  scene.host.create<WorkloadFiles>();
  scene.host.start();
  EXPECT(scene.host.attachments().size() == 1);
  const auto& attached = scene.host.attachments().begin()->second;
  EXPECT((attached.labels ==
          sluice::Labels{{"class", "vm"}, {"tenant", "acme"}, {"workload", "vm-1"}}));
  EXPECT(scene.host.calls().back().starts_with("timer_set"));
  EXPECT(scene.host.count_calls("listed") == 1);

  scene.write("vm-1", "lo\ntenant = globex\n");
  scene.look();
  EXPECT(scene.host.attachments().begin()->second.labels.at("tenant") == "globex");

  std::filesystem::remove(scene.directory / "vm-1");
  scene.look();
  EXPECT(scene.host.attachments().empty());
  EXPECT(!scene.host.failure());
}

void what_is_not_there_yet_is_looked_for_again() {
  Scene scene;
  scene.write("vm-2", "no-such-link0\n");
  scene.write(".vm-3", "lo\n");
  scene.write("vm-4", "");
  scene.host.create<WorkloadFiles>();
  scene.host.start();
  EXPECT(scene.host.attachments().empty());
  scene.write("vm-2", "lo\n");
  scene.host.advance(std::chrono::seconds(2));
  EXPECT(scene.host.attachments().size() == 1);
}

void a_refusal_is_said_once_and_tried_again() {
  Scene scene;
  scene.write("vm-1", "lo\n");
  scene.host.create<WorkloadFiles>();
  scene.host.refuse("attach", EEXIST, "lo: another discovery has it");
  scene.host.start();
  scene.host.advance(std::chrono::seconds(20));
  EXPECT(scene.host.lines().size() == 1);
  scene.host.allow("attach");
  scene.host.advance(std::chrono::seconds(2));
  EXPECT(scene.host.attachments().size() == 1);
}

void a_missing_directory_is_named() {
  Scene scene;
  std::filesystem::remove(scene.directory);
  scene.host.create<WorkloadFiles>();
  try {
    scene.host.start();
    EXPECT(!"start() must fail");
  } catch (const sluice::Error& error) {
    EXPECT(error.code() == ENOENT);
    EXPECT(error.message().find(scene.directory.string()) != std::string::npos);
  }
}

}  // namespace

int main() {
  files_become_attachments();
  what_is_not_there_yet_is_looked_for_again();
  a_refusal_is_said_once_and_tried_again();
  a_missing_directory_is_named();
  std::puts("all is so");
}
