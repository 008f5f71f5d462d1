#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "static/policy_set.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "unit/config/folder.hpp"

using namespace sluice;
using namespace sluice::static_policy;
using namespace std::chrono_literals;

namespace {

std::string policy_text(const std::string& name, const std::string& more = "") {
  return "[[policy]]\nname = \"" + name + "\"\nmatch = {}\n" + more;
}
const std::string kRule = "[[policy.allow]]\ncidrs = [\"10.0.0.0/8\"]\n";
const std::string kShortRule = kRule + "ttl = \"1h\"\n";

Moment at(std::chrono::seconds boot, std::int64_t wall) {
  return {.boot = sdk::Time(boot), .wall_seconds = wall};
}

std::vector<std::string> names(const PolicySet& set) {
  std::vector<std::string> out;
  for (const auto& policy : set.policies) out.push_back(policy->name);
  return out;
}

}  // namespace

TEST_CASE("files count in the order of their names, over all globs, each once") {
  const test::Folder folder;
  folder.write("z/10-first.toml", policy_text("first"));
  folder.write("a/20-second.toml", policy_text("second") + policy_text("third"));
  folder.write("b/20-second.toml", policy_text("fourth"));
  folder.write("a/.hidden.toml", "nonsense");
  folder.write("a/notes.txt", "nonsense");
  PolicyLoader loader(resolve({"a/*.toml", "*/*.toml"}, {}, folder.path()));
  const auto result = loader.load({}, {}, at(5s, 1000));
  REQUIRE(result.errors.empty());
  REQUIRE(result.set);
  CHECK(names(*result.set) == std::vector<std::string>{"first", "second", "third", "fourth"});
  CHECK(result.warnings.empty());
}

TEST_CASE("one fault anywhere and there is no set; all faults of all files are named") {
  const test::Folder folder;
  folder.write("a.toml", policy_text("one"));
  folder.write("b.toml", policy_text("one") + "mood = 1\n");
  folder.write("c.toml", "");
  folder.write("d.toml", policy_text("one"));
  PolicyLoader loader(resolve({"*.toml"}, {}, folder.path()));
  const auto result = loader.load({}, {}, at(5s, 1000));
  CHECK_FALSE(result.set);
  REQUIRE(result.errors.size() == 3);
  const auto file = [&](const char* name) { return (folder.path() / name).string(); };
  CHECK(result.errors[0].message().starts_with(file("b.toml") + ":4:1: "));
  CHECK(result.errors[1].message().starts_with(file("c.toml") + ":1:1: "));
  CHECK(result.errors[2].message() == file("d.toml") + ":1:1: a policy named \"one\" stands at " +
                                          file("a.toml") + ":1 too; rename one");
}

TEST_CASE("a glob without files is a warning, a directory that may not be read an error") {
  const test::Folder folder;
  std::filesystem::create_directory(folder.path() / "empty");
  PolicyLoader loader(resolve({"empty/*.toml", "none/*.toml", "n?ne.toml"}, {}, folder.path()));
  const auto result = loader.load({}, {}, at(5s, 1000));
  CHECK(result.set);
  CHECK(result.errors.empty());
  REQUIRE(result.warnings.size() == 3);
  CHECK(result.warnings[0].find("no file matches") != std::string::npos);

  // A loop of links cannot be listed by root either.
  std::filesystem::create_symlink("loop", folder.path() / "loop");
  PolicyLoader blind(resolve({"loop/*.toml"}, {}, folder.path()));
  const auto refused = blind.load({}, {}, at(5s, 1000));
  CHECK_FALSE(refused.set);
  REQUIRE(refused.errors.size() == 1);
  CHECK(refused.errors[0].message().find("cannot be listed") != std::string::npos);
}

TEST_CASE("a path without wildcards that is not there is an error") {
  const test::Folder folder;
  folder.write("a.toml", policy_text("one"));
  PolicyLoader loader(resolve({"a.toml", "agents.toml"}, {}, folder.path()));
  const auto result = loader.load({}, {}, at(5s, 1000));
  CHECK_FALSE(result.set);
  CHECK(result.warnings.empty());
  REQUIRE(result.errors.size() == 1);
  CHECK(result.errors[0].message().starts_with((folder.path() / "agents.toml").string() +
                                               ": does not exist; check the path"));
  // It is watched for: once it is there, all is well.
  CHECK(result.touched.contains(folder.path() / "*"));
  folder.write("agents.toml", policy_text("two"));
  CHECK(loader.load({}, {}, at(5s, 1000)).set);
}

TEST_CASE("what does not change keeps its identity and its beginning") {
  const test::Folder folder;
  folder.write("a.toml", policy_text("short", kShortRule) + policy_text("other", kRule));
  folder.write("list.txt", "192.0.2.0/24\n");
  folder.write(
      "b.toml",
      policy_text("listed", "[[policy.deny]]\ncidr_files = [\"list.txt\"]\nttl = \"1h\"\n"));
  PolicyLoader loader(resolve({"*.toml"}, {}, folder.path()));
  const auto first = loader.load({}, {}, at(100s, 1000));
  REQUIRE(first.set);
  CHECK(first.set->policies[0]->counted_from == sdk::Time(100s));
  CHECK(first.touched.contains(folder.path() / "list.txt"));

  // Nothing changed, and what changed in form only.
  folder.replace("a.toml",
                 "# a comment\n" + policy_text("short", kShortRule) + policy_text("other", kRule));
  const auto second = loader.load(*first.set, {}, at(200s, 1100));
  REQUIRE(second.set);
  CHECK(second.set->policies == first.set->policies);

  // Another policy of the file changed, and a list.
  folder.replace("a.toml", policy_text("short", kShortRule) + policy_text("other"));
  folder.write("list.txt", "192.0.2.0/24\n198.51.100.0/24\n");
  const auto third = loader.load(*second.set, {}, at(300s, 1200));
  REQUIRE(third.set);
  CHECK(third.set->policies[0] == first.set->policies[0]);
  CHECK(third.set->policies[1] != first.set->policies[1]);
  CHECK(third.set->policies[2] != first.set->policies[2]);
  CHECK(third.set->policies[2]->counted_from == sdk::Time(300s));
  CHECK(third.set->policies[2]->rule_count() == 2);
}

TEST_CASE("a fault does not make the loader forget, nor remember what is gone") {
  const test::Folder folder;
  folder.write("a.toml", policy_text("a"));
  PolicyLoader loader(resolve({"*.toml"}, {}, folder.path()));
  const auto first = loader.load({}, {}, at(100s, 1000));
  REQUIRE(first.set);
  folder.write("b.toml", "nonsense");
  CHECK_FALSE(loader.load(*first.set, {}, at(101s, 1001)).set);
  folder.write("a.toml", policy_text("a", "mode = \"denylist\"\n"));
  folder.write("b.toml", policy_text("b"));
  const auto last = loader.load(*first.set, {}, at(102s, 1002));
  REQUIRE(last.set);
  CHECK(last.set->policies[0]->mode == Mode::denylist);
}

TEST_CASE("a TTL goes on over a restart, and no clock makes it longer") {
  const test::Folder folder;
  folder.write("a.toml", policy_text("short", kShortRule) + policy_text("other", kRule));
  const auto sources = resolve({"*.toml"}, {}, folder.path());
  const auto first = PolicyLoader(sources).load({}, {}, at(100s, 1000));
  REQUIRE(first.set);
  const auto file = folder.path() / "beginnings";
  const auto beginnings = beginnings_of(*first.set, at(160s, 1060));
  CHECK(beginnings.by_digest.size() == 1);
  CHECK(beginnings.by_digest.begin()->second == 1000);
  beginnings.save(file);
  CHECK(Beginnings::load(file) == beginnings);

  // After a reboot, half an hour later.
  const auto second = PolicyLoader(sources).load({}, Beginnings::load(file), at(10s, 2800));
  REQUIRE(second.set);
  CHECK(second.set->policies[0]->counted_from == sdk::Time(10s - 1800s));
  // The clock was set back.
  const auto third = PolicyLoader(sources).load({}, Beginnings::load(file), at(10s, 500));
  REQUIRE(third.set);
  CHECK(third.set->policies[0]->counted_from == sdk::Time(10s));
  // What says something else begins now.
  folder.write("a.toml", policy_text("short", kRule + "ttl = \"2h\"\n"));
  const auto fourth = PolicyLoader(sources).load({}, Beginnings::load(file), at(10s, 2800));
  REQUIRE(fourth.set);
  CHECK(fourth.set->policies[0]->counted_from == sdk::Time(10s));
}

TEST_CASE("odd lines in the file of beginnings are passed over") {
  const test::Folder folder;
  const auto file = folder.write("beginnings", "\nabc\nabc x\nabc 12\ndef 13");
  CHECK(Beginnings::load(file).by_digest == std::map<std::string, std::int64_t>{{"abc", 12}});
  CHECK(Beginnings::load(folder.path() / "none").by_digest.empty());
  CHECK(Beginnings::load(folder.write("garbage", std::string(1000, '\xff'))).by_digest.empty());
}

TEST_CASE("digests differ where policies do") {
  std::set<std::string> digests;
  Policy policy;
  const auto add = [&] { CHECK(digests.insert(policy.digest()).second); };
  add();
  policy.name = "a";
  add();
  policy.match = {{"b", "c"}};
  add();
  policy.match = {{"bc", ""}};
  add();
  policy.mode = Mode::block_all;
  add();
  policy.audit = false;
  add();
  policy.audit.reset();
  policy.replies = false;
  add();
  policy.groups.emplace_back();
  add();
  policy.groups[0].action = Action::allow;
  add();
  policy.groups[0].ttl = 1s;
  add();
  policy.groups[0].ports = {*PortRange::parse("tcp/443")};
  add();
  policy.groups[0].domains = {"a.org"};
  add();
  policy.groups[0].prefixes = {*Prefix::parse("10.0.0.0/8")};
  add();
  policy.groups[0].prefixes = {*Prefix::parse("a00::/8")};
  add();
  policy.groups.emplace_back();
  add();
}
