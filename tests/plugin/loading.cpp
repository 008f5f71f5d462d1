// Which libraries are loaded, and what is said of the others. A refusal names the file, the cause
// and the cure, and no line of the library has run.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "plugin/stage.hpp"

using namespace sluice;
using namespace sluice::testing;

namespace {

std::string refusal_of(Stage& stage, const std::string& library) {
  const auto errors = stage.prepare_errors({{"one", library}});
  REQUIRE(errors.size() == 1);
  return errors.front();
}
bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a library of root's in the plugin directory is loaded") {
  Stage stage;
  stage.install("neighbour");
  const auto library = Library::load(stage.settings.libraries, "neighbour");
  REQUIRE(library.has_value());
  CHECK((*library)->version() == AbiVersion{SLUICE_ABI_MAJOR, SLUICE_ABI_MINOR});
  CHECK((*library)->has_role(SLUICE_ROLE_DISCOVERY));
  CHECK_FALSE((*library)->has_role(SLUICE_ROLE_POLICY_SOURCE));
}

TEST_CASE("a library built for another ABI is refused before its constructors run") {
  Stage stage;
  stage.install("other_major");
  ::unsetenv("SLUICE_VILLAIN_OTHER_MAJOR_RAN");
  CHECK(refusal_of(stage, "other_major") ==
        "[plugin.one]: other_major.so: built for plugin ABI 2.0, this host speaks 1.1; install the "
        "sluiced it was "
        "built for, or rebuild it against this SDK");
  CHECK(::getenv("SLUICE_VILLAIN_OTHER_MAJOR_RAN") == nullptr);
}

TEST_CASE("a library without a note is refused before its constructors run") {
  Stage stage;
  stage.install("noteless");
  ::unsetenv("SLUICE_VILLAIN_NOTELESS_RAN");
  const auto text = refusal_of(stage, "noteless");
  CHECK(has(text, "noteless.so: has no Sluice version note"));
  CHECK(has(text, "build it with SLUICE_PLUGIN()"));
  CHECK(::getenv("SLUICE_VILLAIN_NOTELESS_RAN") == nullptr);
}

TEST_CASE("a library that is not root's is refused") {
  Stage stage;
  const auto path = stage.install("neighbour");
  if (::geteuid() != 0) {
    stage.settings.libraries.owner = ::geteuid() + 1;
  } else {
    REQUIRE(::chown(path.c_str(), 12345, 0) == 0);
  }
  const auto text = refusal_of(stage, "neighbour");
  CHECK(has(text, "owned by uid"));
  CHECK(has(text, "then chown it"));
}

TEST_CASE("a library that others can write is refused") {
  const std::pair<mode_t, const char*> modes[] = {{0664, "can be written by its group (mode 0664)"},
                                                  {0646, "can be written by everyone (mode 0646)"}};
  for (const auto& [mode, cause] : modes) {
    Stage stage;
    const auto path = stage.install("neighbour");
    ::chmod(path.c_str(), mode);
    const auto text = refusal_of(stage, "neighbour");
    CHECK(has(text, path.string()));
    CHECK(has(text, cause));
    CHECK(has(text, "chmod go-w"));
  }
}

TEST_CASE("a library in a directory that others can write is refused") {
  Stage stage;
  stage.install("neighbour");
  ::chmod(stage.directory.c_str(), 0777);
  const auto text = refusal_of(stage, "neighbour");
  CHECK(has(text, "this plugin directory can be written by everyone"));
}

TEST_CASE("a symbolic link is refused: its target is somebody else's") {
  Stage stage;
  Stage elsewhere;
  std::filesystem::create_symlink(elsewhere.install("neighbour"), stage.directory / "link.so");
  CHECK(has(refusal_of(stage, "link"), "is a symbolic link; put the library itself there"));
}

TEST_CASE("a library is looked up by its bare name in the configured directories only") {
  Stage stage;
  CHECK(has(refusal_of(stage, "absent"), "no absent.so in " + stage.directory.string() +
                                             "; install it there or correct `library`"));
  for (const char* name : {"../neighbour", "/etc/passwd", ".hidden", ""})
    CHECK(has(refusal_of(stage, name), "write the bare name of a plugin"));
}

TEST_CASE("what is no ELF file, or none of a plugin, is refused") {
  Stage stage;
  std::ofstream(stage.directory / "text.so") << "not at all\n";
  std::ofstream(stage.directory / "empty.so");
  std::filesystem::create_directory(stage.directory / "folder.so");
  std::filesystem::create_directory(stage.directory / "x");
  ::chmod((stage.directory / "text.so").c_str(), 0644);
  ::chmod((stage.directory / "empty.so").c_str(), 0644);
  CHECK(has(refusal_of(stage, "text"), "not an ELF file"));
  CHECK(has(refusal_of(stage, "empty"), "not an ELF file"));
  CHECK(has(refusal_of(stage, "folder"), "is no regular file"));
}

TEST_CASE("a truncated library is refused, whatever is missing") {
  Stage stage;
  const auto whole = stage.install("neighbour");
  const auto size = std::filesystem::file_size(whole);
  for (const auto length :
       {std::uintmax_t{4}, std::uintmax_t{52}, std::uintmax_t{64}, std::uintmax_t{300}, size / 4}) {
    std::filesystem::resize_file(whole, length);
    CHECK_FALSE(stage.prepare_errors({{"one", "neighbour"}}).empty());
  }
}

TEST_CASE("a library without the entry is refused") {
  Stage stage;
  stage.install("missing_symbol");
  CHECK(refusal_of(stage, "missing_symbol") ==
        "[plugin.one]: missing_symbol.so: does not export sluice_plugin_v1; write "
        "SLUICE_PLUGIN(YourClass) once in it "
        "and build it with sluice_add_plugin()");
}

TEST_CASE("a table shorter than the first release's is refused") {
  Stage stage;
  stage.install("short_table");
  CHECK(has(refusal_of(stage, "short_table"), "short_table.so: its table has"));
}

TEST_CASE("every fault is reported at once, each library's once") {
  Stage stage;
  stage.install("other_major");
  stage.install("missing_symbol");
  stage.install("neighbour");
  const auto errors = stage.prepare_errors({{"a", "other_major"},
                                            {"b", "neighbour", "nonsense=1"},
                                            {"c", "missing_symbol"},
                                            {"d", "other_major"}});
  CHECK(errors.size() == 3);
}

TEST_CASE("a wire names sources that decide and discoveries that discover") {
  Stage stage;
  stage.install("neighbour");
  stage.install("diligent");
  const auto prepared =
      stage.make().prepare(stage.configs({{"taps", "neighbour"}, {"policy", "diligent"}}));
  REQUIRE(prepared.has_value());
  WireConfig good, bad;
  good.discovered_by = "taps";
  good.sources = {"policy"};
  bad.discovered_by = "policy";
  bad.sources = {"taps", "nobody"};
  CHECK(check_wires(*prepared, {good}, "sluice.toml").empty());
  const auto errors = check_wires(*prepared, {good, bad}, "sluice.toml");
  REQUIRE(errors.size() == 3);
  CHECK(has(errors[0].text, "[[wire]] 2: source \"taps\" (neighbour) decides no policy"));
  CHECK(has(errors[1].text, "source \"nobody\" is no plugin"));
  CHECK(has(errors[2].text, "discovered_by \"policy\" is no discovery"));
}

TEST_CASE("--check creates a plugin, lets it look, and starts nothing") {
  Stage stage;
  stage.install("diligent");
  stage.install("throwing_constructor");
  auto prepared = stage.make().prepare(stage.configs({{"good", "diligent"},
                                                      {"bad", "diligent", "greeting=rude"},
                                                      {"ugly", "throwing_constructor"}}));
  REQUIRE(prepared.has_value());
  const auto lines = check_plugins(*prepared, stage.settings).errors;
  REQUIRE(lines.size() == 2);
  CHECK(lines[0] == "diligent.toml:3:1: that is no greeting");
  CHECK(has(lines[1],
            "sluice.toml:1: [plugin.ugly]: plugin throwing_constructor.so cannot be created: no "
            "such zoo"));
  CHECK(stage.lines().empty());
}
