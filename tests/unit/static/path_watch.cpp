#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "static/path_watch.hpp"

#include <doctest/doctest.h>
#include <poll.h>

#include <fstream>

#include "unit/config/folder.hpp"

using namespace sluice;
using namespace sluice::static_policy;
namespace fs = std::filesystem;

namespace {

bool is_told(PathWatch& watch) {
  pollfd polled{.fd = watch.fd(), .events = POLLIN, .revents = 0};
  const bool told = ::poll(&polled, 1, 0) == 1;  // inotify queues before the writer's call returns
  watch.drain();
  return told;
}

}  // namespace

TEST_CASE("what decides a path: its directory, those of the links on the way, or the nearest") {
  const test::Folder folder;
  const auto& root = folder.path();
  folder.write("real/data/a.toml", "");
  fs::create_directory(root / "links");
  fs::create_symlink("../real/data", root / "links/data");
  fs::create_symlink("links/data/a.toml", root / "a.toml");
  fs::create_symlink("loop", root / "loop");
  fs::create_symlink("nowhere/x", root / "dangling");
  using Set = std::set<fs::path>;
  CHECK(deciding_directories(root / "real/data/a.toml") == Set{root / "real/data"});
  CHECK(deciding_directories(root / "real/data/new.toml") == Set{root / "real/data"});
  CHECK(deciding_directories(root / "real/none/x/y.toml") == Set{root / "real"});
  CHECK(deciding_directories(root / "links/data/a.toml") ==
        Set{root / "links", root / "real/data"});
  CHECK(deciding_directories(root / "a.toml") == Set{root, root / "links", root / "real/data"});
  CHECK(deciding_directories(root / "dangling") == Set{root});
  CHECK(deciding_directories(root / "loop/x") == Set{root});
}

TEST_CASE("every way to change a file is told, and a quiet folder is quiet") {
  const test::Folder folder;
  folder.write("a.toml", "1");
  folder.write("elsewhere/a.toml", "1");
  PathWatch watch;
  CHECK(watch.watch({folder.path() / "a.toml"}));
  CHECK_FALSE(watch.watch({folder.path() / "a.toml"}));
  CHECK_FALSE(is_told(watch));
  folder.write("a.toml", "2");
  CHECK(is_told(watch));
  folder.replace("a.toml", "3");
  CHECK(is_told(watch));
  fs::permissions(folder.path() / "a.toml", fs::perms::owner_read);
  CHECK(is_told(watch));
  fs::remove(folder.path() / "a.toml");
  CHECK(is_told(watch));
  fs::create_symlink("elsewhere/a.toml", folder.path() / "a.toml");
  CHECK(is_told(watch));
  folder.write("elsewhere/a.toml", "2");
  CHECK_FALSE(is_told(watch));
  CHECK(watch.watch({folder.path() / "a.toml"}));
  folder.write("elsewhere/a.toml", "3");
  CHECK(is_told(watch));
}

TEST_CASE("a directory that goes and comes again is watched again") {
  const test::Folder folder;
  folder.write("d/a.toml", "1");
  const std::set<fs::path> paths{folder.path() / "d/a.toml"};
  PathWatch watch;
  CHECK(watch.watch(paths));
  fs::remove_all(folder.path() / "d");
  CHECK(is_told(watch));
  CHECK(watch.watch(paths));
  folder.write("d/a.toml", "2");
  CHECK(is_told(watch));
  CHECK(watch.watch(paths));
  folder.write("d/a.toml", "3");
  CHECK(is_told(watch));

  // Another directory under the same name, between two looks.
  folder.write("e/a.toml", "4");
  fs::rename(folder.path() / "d", folder.path() / "old");
  fs::rename(folder.path() / "e", folder.path() / "d");
  CHECK(is_told(watch));
  CHECK(watch.watch(paths));
  is_told(watch);
  folder.write("old/a.toml", "5");
  CHECK_FALSE(is_told(watch));
  folder.write("d/a.toml", "6");
  CHECK(is_told(watch));
}

TEST_CASE("a file is being written from the first write until it is closed") {
  const test::Folder folder;
  folder.write("a.txt", "1");
  folder.write("elsewhere/b.txt", "1");
  fs::create_symlink("elsewhere/b.txt", folder.path() / "b.txt");
  const auto a = folder.path() / "a.txt", b = folder.path() / "b.txt", c = folder.path() / "c.txt";
  const std::set<fs::path> paths{a, b, c};
  PathWatch watch;
  watch.watch(paths);
  const auto written = [&] { return watch.being_written(paths).value_or(""); };
  CHECK(written() == "");
  {
    std::ofstream out(b, std::ios::app);
    CHECK_FALSE(watch.drain());
    CHECK(written() == "");
    out << "2" << std::flush;
    CHECK_FALSE(watch.drain());
    CHECK(written() == b);
    CHECK_FALSE(watch.drain());
    CHECK(written() == b);
  }
  CHECK(watch.drain());
  CHECK(written() == b);  // it may have been read before it was whole
  CHECK_FALSE(watch.drain());
  CHECK(written() == "");
  {
    const std::ofstream emptied(a);
    watch.drain();
    CHECK(written() == a);
    fs::rename(a, folder.path() / "away");
    watch.drain();
    CHECK(written() == "");
  }
  {
    const std::ofstream created(c);
    CHECK(watch.drain());
    CHECK(written() == c);
  }
  fs::remove(c);
  watch.drain();
  fs::create_hard_link(folder.path() / "elsewhere/b.txt", c);
  CHECK(watch.drain());
  CHECK(written() == "");
  folder.replace("a.txt", "2");
  CHECK(watch.drain());
  CHECK(written() == "");
}
