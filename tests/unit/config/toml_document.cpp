#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "config/toml_document.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <string>

#include "unit/config/folder.hpp"

using namespace sluice;
using namespace std::string_literals;

namespace {

std::string only_error(std::string_view text, const TomlLimits& limits = {}) {
  const auto root = parse_toml(text, "f", limits);
  if (root) return "no error";
  REQUIRE(root.error().size() == 1);
  return root.error().front().message();
}

std::string repeated(const std::string& text, std::size_t count) {
  std::string out;
  out.reserve(text.size() * count);
  for (std::size_t i = 0; i < count; ++i) out += text;
  return out;
}

std::string place(TextPosition at) {
  return std::to_string(at.line) + ":" + std::to_string(at.column);
}

}  // namespace

TEST_CASE("keys and values know where they stand") {
  const auto root = parse_toml(
      "a.b = 1\n"
      "\n"
      "[c]   # comment\n"
      "  \"q x\" = { k = 2, 'z' = [ 1.5,\n"
      "    true ] }\n"
      "s = \"\xc3\xa9\xc3\xa9\"  \n"
      "t = [\"\xc3\xa9\", 7]\n"
      "[[d]]\n"
      "x = 1\n"
      "[[d]]\n"
      "y = 1979-05-27\n",
      "f");
  REQUIRE(root);
  CHECK(place(root->find("a")->find("b")->position) == "1:7");
  const auto* c = root->find("c");
  CHECK(place(c->position) == "3:1");
  CHECK(place(c->entries[0].position) == "4:3");
  CHECK(c->entries[0].key == "q x");
  CHECK(place(c->entries[0].value.entries[0].position) == "4:13");
  CHECK(place(c->entries[0].value.entries[1].position) == "4:20");
  CHECK(place(c->entries[0].value.find("z")->items[0].position) == "4:28");
  CHECK(place(c->entries[0].value.find("z")->items[1].position) == "5:5");
  // Columns count characters.
  CHECK(place(c->find("t")->items[1].position) == "7:11");
  CHECK(place(root->find("d")->items[1].position) == "10:1");
  CHECK(place(root->find("d")->items[1].find("y")->position) == "11:5");
}

TEST_CASE("equal values have equal canonical text, whatever the layout") {
  const auto one = parse_toml("b = [1, \"x\\\"\\u0001\"]\na = { d = true, c = 1.5 }\n", "f");
  const auto other = parse_toml("[a]\nc=1.5 # c\nd=true\n", "f");
  REQUIRE(one);
  REQUIRE(other);
  CHECK(canonical_toml(*one) == R"({"a" = {"c" = 1.5, "d" = true}, "b" = [1, "x\"\u0001"]})");
  CHECK(canonical_toml(*one->find("a")) == canonical_toml(*other->find("a")));
}

TEST_CASE("a syntax error is one line with its place") {
  struct Row {
    const char* text;
    const char* wanted;
  };
  for (const Row& row : {
           Row{"a = 1 2\n", "f:1:7: not TOML: invalid line format: expected newline, but got '2'."},
           Row{"a = 1\nb = \"abc\n", "f:2:5: not TOML: string is not closed on its line"},
           Row{"a = \"\\q\"\n", "f:1:5: not TOML: string is not closed on its line, or has"},
           Row{"a = '''abc", "f:1:5: not TOML: string of three quotes is never closed"},
           Row{"a = 'abc\n", "f:1:5: not TOML: string is not closed on its line"},
           Row{"a = [1, 2\nb = 3\n",
               "f:2:1: not TOML: the list needs ',' before this, or ']' "
               "(line 1: array starts here)"},
           Row{"a = [1, tru]\n", "f:1:9: not TOML: not a value in this list"},
           Row{"a = [1,\n2,\n", "not TOML"},
           Row{"a = tru\n", "f:1:5: not TOML: not a value; text stands in quotes"},
           Row{"name = agents\n",
               "f:1:8: not TOML: not a value; text stands in straight quotes (\"vm\"), and yes "
               "and no are true and false, in small letters"},
           Row{"match = { class = vm }\n",
               "f:1:19: not TOML: not a value; text stands in straight"},
           Row{"audit = True\n", "f:1:9: not TOML: not a value; text stands in straight quotes"},
           Row{"audit = yes\n", "f:1:9: not TOML: not a value; text stands in straight quotes"},
           Row{"a = \u201cb\u201d\n", "f:1:5: not TOML: not a value; text stands in straight"},
           Row{"a = [b]\n", "f:1:6: not TOML: not a value in this list; text stands in quotes"},
           Row{"a = 0x\n", "f:1:5: not TOML: not a number"},
           Row{"a =\nb = 1\n", "f:1:4: not TOML: the value behind '=' is missing"},
           Row{"\n= 3\n", "f:2:1: not TOML: the key before '=' is missing"},
           Row{"a 3\n", "f:1:2: not TOML: missing key-value separator"},
           Row{"a b = 3\n", "f:1:2: not TOML: key with a blank or an odd character"},
           Row{"[a\nb = 1\n", "f:1:1: not TOML: not a key or a closed [table] header"},
           Row{"[a]\nx = 1\n[a]\ny = 2\n", "f:3:1: not TOML: table (\"a\") already exists"},
           Row{"a = 1\n\n\na = 2\n", "f:4:5: not TOML: value (\"a\") already exists"},
           Row{"a = 1\n[[a]]\n", "f:2:1: not TOML: array of table (\"a\") collides"},
           Row{"a = 2020-13-45\n", "not TOML: invalid date"},
           Row{"a = 9223372036854775808\n", "f:1:5: number too large"},
           Row{"a = -9_223_372_036_854_775_809\n", "f:1:5: number too large"},
       }) {
    CAPTURE(row.text);
    const auto message = only_error(row.text);
    CAPTURE(message);
    CHECK(message.find(row.wanted) != std::string::npos);
    CHECK(message.find('\n') == std::string::npos);
    CHECK(message.find("toml::") == std::string::npos);
  }
}

TEST_CASE("bytes that belong in no text file are named with their place") {
  CHECK(only_error("a = \"\xff\"\n") == "f:1:6: byte 0xff is not UTF-8; save the file as UTF-8");
  CHECK(only_error("\n\xc3\xa9 \xed\xa0\x80") ==
        "f:2:3: byte 0xed is not UTF-8; save the file as UTF-8");
  CHECK(only_error("# \xc0\xaf") == "f:1:3: byte 0xc0 is not UTF-8; save the file as UTF-8");
  CHECK(only_error("a = 1\0\n"s).starts_with("f:1:6: control character 0x00;"));
  CHECK(only_error("a = '\x1b'\n").starts_with("f:1:6: control character 0x1b;"));
  CHECK(only_error("a = 1\rb = 2\n").starts_with("f:1:6: control character 0x0d;"));
  CHECK(parse_toml("\xef\xbb\xbf\x61 = 1\r\n", "f"));
}

TEST_CASE("what would cost time or memory is refused before it is parsed") {
  CHECK(only_error("a = " + repeated("[", 17)) == "f:1:21: nested more than 16 levels deep");
  CHECK(only_error("a = " + repeated("[", 1'000'000)).find("nested more") != std::string::npos);
  CHECK(only_error("a = " + repeated("{a=", 5'000)).find("nested more") != std::string::npos);
  CHECK(only_error(repeated("a.", 5'000) + "a = 1\n") == "f:1:32: a key of more than 16 parts");
  CHECK(only_error("[" + repeated("a.", 5'000) + "a]\n") == "f:1:33: a key of more than 16 parts");
  CHECK(only_error("a = 1\nb = \"" + std::string(20'000, 'x') + "\"\n")
            .starts_with("f:2:1: line longer than 16384 bytes"));
  CHECK(only_error("a = '''" + repeated("x", 3'000'000)).starts_with("f:1:1: line longer than"));
  CHECK(only_error("a = [\n" + repeated("1,\n", 100'001) + "]\n").find("more than 100000 values") !=
        std::string::npos);
  CHECK(only_error(repeated("[[a]]\n", 60'000)).find("more than 100000 values") !=
        std::string::npos);
  CHECK(only_error(std::string(100, '\n'), {.bytes = 99}) == "f: is larger than 99 bytes");
}

TEST_CASE("brackets and dots inside strings and comments count for nothing") {
  const auto nested = repeated("[", 40) + repeated(".", 40);
  CHECK(parse_toml("# " + nested + "\na = \"" + nested + "\"\nb = '" + nested + "'\nc = '''" +
                       nested + "''\n" + nested + "''''\nd = \"\"\"\n" + nested + "\\\"\"\" " +
                       nested + "\"\"\"\"\"\ne = 1\n",
                   "f"));
}

TEST_CASE("a file that cannot be read is one error with the cure") {
  const test::Folder folder;
  const auto message = [](const std::filesystem::path& file, std::size_t limit = 1000) {
    const auto text = read_text_file(file, limit);
    REQUIRE_FALSE(text);
    REQUIRE(text.error().size() == 1);
    return text.error().front().message();
  };
  const auto path = [&](const char* name) { return (folder.path() / name).string(); };

  CHECK(message(path("none")) == path("none") + ": does not exist; check the path");
  CHECK(message(folder.path()) == folder.path().string() + ": is a directory; name a file");
  CHECK(message(folder.write("large", std::string(1001, 'x'))).find("larger than 1000 bytes") !=
        std::string::npos);
  std::filesystem::create_symlink("loop", folder.path() / "loop");
  CHECK(message(path("loop")).find("loop of symbolic links") != std::string::npos);
  // Nobody writes into it: an open without O_NONBLOCK would wait for ever.
  REQUIRE(::mkfifo(path("fifo").c_str(), 0600) == 0);
  CHECK(message(path("fifo")).find("not a regular file") != std::string::npos);
  CHECK(message("/dev/zero").find("not a regular file") != std::string::npos);

  CHECK(read_text_file(folder.write("full", std::string(1000, 'x')), 1000)->size() == 1000);
  CHECK(read_text_file(folder.write("empty", ""), 1000)->empty());
  // Its size reads as zero.
  CHECK(read_text_file("/proc/self/status", 100'000)->find("Name:") == 0);
}
