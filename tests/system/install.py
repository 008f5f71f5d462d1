"""What is installed fits together: files, unit, programs and documents name each other by the paths they are installed under."""

import configparser
import glob
import os
import re
import shutil
import subprocess

import pytest

from machine import BUILD, REPOSITORY, run

GUIDES = {"configuration.md", "policy.md", "names.md", "discovery.md", "journal.md"}


def cached(variable):
    """A variable of the build under test."""
    with open(f"{BUILD}/CMakeCache.txt") as file:
        return re.search(rf"^{variable}:\w+=(.*)$", file.read(), re.MULTILINE)[1]


class Installed:
    """Programs as built, and the files that belong to `prefix`, below `root` as DESTDIR puts them."""

    def __init__(self, folder, prefix, root=""):
        self.prefix, self.root, self.tree = prefix, root, f"{folder}/tree"
        # What names paths is made by configuring; the programs need not be built once more for it.
        run("cmake", "-S", REPOSITORY, "-B", self.tree, "-G", "Ninja", "-DSLUICE_WITH_TESTS=OFF", "-DSLUICE_WITH_BENCHMARKS=OFF",
            f"-DCMAKE_INSTALL_PREFIX={prefix}")
        self.install(self.tree, "--component", "config")
        for component in ("Unspecified", "plugins"):
            self.install(BUILD, "--component", component, "--prefix", prefix)

    def install(self, *words, check=True):
        return run("cmake", "--install", *words, check=check, env=dict(os.environ, DESTDIR=self.root), umask=0o022)

    def path(self, path):
        return self.root + path

    def read(self, path):
        with open(self.path(path)) as file:
            return file.read()

    def compiled_in(self):
        with open(f"{self.tree}/host/base/install_paths.cpp") as file:
            return dict(re.findall(r"(kInstalled\w+) = \"(.*)\"", file.read()))

    def unit(self):
        unit = configparser.RawConfigParser(strict=False)
        unit.optionxform = str
        unit.read_string(self.read(f"{self.prefix}/lib/systemd/system/sluiced.service"))
        return unit

    def fits_together(self, etc):
        config = f"{etc}/sluice/sluice.toml"
        plugins = f"{self.prefix}/lib/sluice/plugins"
        assert self.compiled_in() == {"kInstalledConfig": config, "kInstalledPlugins": plugins}
        assert f'plugin_path = ["{plugins}"]' in self.read(config)
        names = {os.path.basename(path) for path in glob.glob(self.path(f"{plugins}/*.so"))}
        assert names >= {"interfaces.so", "cgroups.so", "static.so", "dns.so", "journal.so"}
        service = self.unit()["Service"]
        assert service["ExecStartPre"] == f"{self.prefix}/sbin/sluiced --check {config}"
        assert service["ExecStart"] == f"{self.prefix}/sbin/sluiced --config {config}"
        assert os.access(self.path(f"{self.prefix}/sbin/sluiced"), os.X_OK)
        assert os.path.isfile(self.path(f"{self.prefix}/share/sluice/presets/pip.toml"))
        with open(f"{self.tree}/build.ninja") as file:
            assert f'{self.prefix}/share/sluice/presets\\"' in file.read()


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    yield Installed(folder, f"{folder}/prefix")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packaged")
    yield Installed(folder, "/usr", root=f"{folder}/root")
    shutil.rmtree(folder)


def test_under_usr_everything_is_where_debian_has_it(packaged):
    packaged.fits_together("/etc")


def test_under_a_prefix_of_its_own_everything_is_there(private):
    private.fits_together(f"{private.prefix}/etc")


def test_the_shipped_configuration_passes_the_check_as_it_is_installed(private):
    done = subprocess.run([f"{private.prefix}/sbin/sluiced", "--check", f"{private.prefix}/etc/sluice/sluice.toml"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_daemon_says_which_file_it_reads():
    etc = {"/usr": "/etc"}.get(cached("CMAKE_INSTALL_PREFIX"), cached("CMAKE_INSTALL_PREFIX") + "/etc")
    assert f"FILE is {etc}/sluice/sluice.toml unless given" in run(f"{BUILD}/host/daemon/sluiced", "--help")


def test_another_prefix_than_the_one_it_was_configured_for_is_refused(private, tmp_path):
    done = subprocess.run(["cmake", "--install", private.tree, "--prefix", tmp_path / "other"], capture_output=True, text=True)
    assert done.returncode != 0
    assert f"this build is for the prefix {private.prefix}" in " ".join(done.stderr.split())
    assert not os.path.exists(tmp_path / "other")


def test_an_upgrade_leaves_the_configuration_alone(private):
    config = f"{private.prefix}/etc/sluice/sluice.toml"
    shipped = private.read(config)
    try:
        with open(config, "a") as file:
            file.write("# mine\n")
        private.install(private.tree, "--component", "config")
        assert private.read(config) == shipped + "# mine\n"
        assert private.read(config + ".dist") == shipped
    finally:
        with open(config, "w") as file:
            file.write(shipped)


def test_the_guides_that_files_name_are_installed(packaged):
    documents = f"{packaged.prefix}/share/doc/sluice"
    guides = set(os.listdir(packaged.path(documents)))
    assert guides == GUIDES
    config = packaged.read("/etc/sluice/sluice.toml")
    assert documents in config
    for text in (config, packaged.read("/etc/sluice/policies.d/example.toml.disabled")):
        assert set(re.findall(r"[\w./]+\.md", text)) <= guides, "by their names, beside each other"
    for guide in guides:
        for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", packaged.read(f"{documents}/{guide}")):
            assert link in guides, f"{guide}: {link}"


def test_the_unit_goes_on_after_a_file_in_error_and_gives_the_journal_its_folder(private):
    unit = private.unit()
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["LogsDirectory"] == "sluice"
    path = f"{private.prefix}/lib/systemd/system/sluiced.service"
    if shutil.which("systemd-analyze"):
        done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
        assert "sluiced.service" not in done.stderr, done.stderr
