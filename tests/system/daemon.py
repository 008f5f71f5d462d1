"""sluiced under test: started on a configuration of its own, asked, killed, and read through its pinned maps."""

import contextlib
import ctypes
import fcntl
import glob
import ipaddress
import json
import mmap
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from machine import BUILD, PATIENCE, LabError, bpffs_root, checked, eventually, find_program, libc, run

INTERFACES_CONFIG = """
[plugin.taps]
library = "interfaces"
match   = ["h*"]
labels  = { class = "vm" }

[plugin.static]
library  = "static"
policies = ["{policies}"]

[[wire]]
targets = { discovered_by = "taps" }
sources = ["static"]
mode    = "block-all"
"""

# The shipped caps are for one workload's life, not for as many names as fit into a minute: options of [plugin.dns] and [host].
UNLIMITED = ('limit = { rate = 1000000, burst = 1000000, in_flight = 60000, upstream_rate = 1000000, upstream_burst = 1000000, '
             'names = 65000, names_per_wildcard = 65000, window = "1s" }')
UNLIMITED_HOST = "dns_packets_per_second = 1000000\nmax_learned_per_workload = 1000000\n"


def names_config(upstream="198.19.0.2", options=""):
    """INTERFACES_CONFIG and a resolver on its wire; `options`: further lines of [plugin.dns]."""
    resolver = f'[plugin.dns]\nlibrary   = "dns"\nupstreams = ["{upstream}"]\n{options}\n\n[[wire]]'
    return INTERFACES_CONFIG.replace('[[wire]]', resolver).replace('["static"]', '["static", "dns"]')


def plugin_folders():
    """The folders of the build that hold plugins as shipped."""
    folders = sorted({os.path.dirname(path) for path in glob.glob(f"{BUILD}/plugins/**/*.so", recursive=True)})
    if not folders:
        raise LabError(f"no plugin in {BUILD}/plugins; build them first: cmake --build {BUILD}")
    return folders


def make_trustworthy():
    """Plugins must be root's and not writable by others; a build under a loose umask is not."""
    for folder in plugin_folders():
        for path in glob.glob(f"{folder}/*.so"):
            os.chown(path, 0, 0)
            os.chmod(path, os.stat(path).st_mode & ~0o022)


def to_toml(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {to_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return json.dumps(value)


class LiveSlot:
    """One element of the map `slots`, read through a mapping: no system call, so a test may spin on it."""

    def __init__(self, path, index, shown):
        attributes = struct.pack("QII112x", ctypes.addressof(name := ctypes.create_string_buffer(path.encode())), 0, 0)
        fd = checked(libc.syscall(321, 7, attributes, len(attributes)), f"BPF_OBJ_GET {path}")  # x86-64; bpf(2)
        stride = (shown["bytes_value"] + 7) & ~7
        size = (stride * shown["max_entries"] + mmap.PAGESIZE - 1) & ~(mmap.PAGESIZE - 1)
        self.map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        os.close(fd)
        self.offset = stride * index

    @property
    def word(self):
        return struct.unpack_from("Q", self.map, self.offset)[0]

    @property
    def generation(self):
        """Low 24 bits, as the packet sees it: read from the word that is published."""
        return self.word >> 40

    def close(self):
        self.map.close()


# Starts a program with descriptors from 3 on, as a service manager does that kept them.
HAND_OVER = """
import os, sys
count = int(sys.argv[1])
for number, fd in enumerate(map(int, sys.argv[2:2 + count])):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2 + count], sys.argv[2 + count:])
"""


class Daemon:
    """sluiced on a configuration of its own. `config` is TOML text; {folder}, {plugins}, {state}, {bpffs} are filled in."""

    HOST = """
[host]
plugin_path = {plugins}
state_dir   = {state}
bpffs       = {bpffs}
log_level   = "debug"
max_attachments = {max_attachments}
"""

    def __init__(self, lab, namespace, config, policies, name="d", max_attachments=256, extra_host="", environment=None,
                 wrapper=()):
        self.lab, self.namespace, self.name, self.wrapper = lab, namespace, name, list(wrapper)
        self.folder = os.path.join(lab.folder, name)
        self.policy_folder = os.path.join(self.folder, "policies.d")
        os.makedirs(self.policy_folder)
        self.state = os.path.join(self.folder, "state")
        self.pins = f"{bpffs_root()}/sluice-test-{lab.prefix}{name}"
        self.config_file = os.path.join(self.folder, "sluice.toml")
        self.log_file = os.path.join(self.folder, "log")
        self.environment = dict(os.environ, **(environment or {}))
        self.max_attachments, self.extra_host = max_attachments, extra_host
        self.process = None
        self.notify = None
        self.keeps_descriptors = False  # set before start(): the service manager has a store for them
        self.kept = []  # (name, descriptor)
        self.program = "sluiced"
        make_trustworthy()
        for file, text in policies.items():
            self.write_policy(file, text)
        self.write_config(config)

    def write_config(self, config):
        head = self.HOST.format(plugins=to_toml(plugin_folders()), state=to_toml(self.state), bpffs=to_toml(self.pins),
                                max_attachments=self.max_attachments) + self.extra_host
        config = config.replace("{folder}", self.folder).replace("{policies}", f"{self.policy_folder}/*.toml")
        self._replace(self.config_file, head + config)

    def write_policy(self, file, text):
        self._replace(os.path.join(self.policy_folder, file), text)

    @staticmethod
    def _replace(path, text):
        with open(path + ".new", "w") as file:
            file.write(text)
        os.rename(path + ".new", path)

    def start(self, wait=True):
        if self.notify:
            self.notify.close()
        notify_path = os.path.join(self.folder, "notify")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(notify_path)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.notify.bind(notify_path)
        os.chmod(notify_path, 0o666)
        self.notify.settimeout(0.05)
        self.is_ready = threading.Event()
        threading.Thread(target=self._listen, args=(self.notify,), daemon=True).start()
        self.log_start = os.path.getsize(self.log_file) if os.path.exists(self.log_file) else 0
        log = open(self.log_file, "ab")
        words = self.wrapper + [find_program(self.program), "--config", self.config_file]
        environment = dict(self.environment, NOTIFY_SOCKET=notify_path)
        handed = [fd for _, fd in self.kept]
        if handed:
            words = [sys.executable, "-c", HAND_OVER, str(len(handed)), *map(str, handed), *words]
            environment.update(LISTEN_FDS=str(len(handed)), LISTEN_FDNAMES=":".join(name for name, _ in self.kept))
        self.process = self.namespace.popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
                                            pass_fds=handed)
        log.close()
        if wait:
            self.wait_ready()
        return self

    def _listen(self, notify):
        """A service manager reads what it is told, and keeps what it is given."""
        with contextlib.suppress(OSError, ValueError):
            while True:
                with contextlib.suppress(TimeoutError):
                    text, fds, _, _ = socket.recv_fds(notify, 4096, 4)
                    self._keep(dict(line.partition("=")[::2] for line in text.decode().splitlines()), fds)
                    if b"READY=1" in text:
                        self.is_ready.set()

    def _keep(self, said, fds):
        name = said.get("FDNAME")
        if "FDSTOREREMOVE" in said:
            for entry in [entry for entry in self.kept if entry[0] == name]:
                self.kept.remove(entry)
                os.close(entry[1])
        for fd in fds:
            if "FDSTORE" in said and self.keeps_descriptors:
                self.kept.append((name, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 500)))  # beyond where they are handed over
            os.close(fd)

    def forget_descriptors(self):
        while self.kept:
            os.close(self.kept.pop()[1])

    def wait_ready(self, patience=PATIENCE):
        deadline = time.monotonic() + patience
        while True:
            if self.is_ready.wait(0.05):
                return
            if self.process.poll() is not None:
                raise AssertionError(f"sluiced ended with {self.process.returncode} before it was ready:\n{self.log()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"sluiced did not say that it is ready within {patience:.0f} s:\n{self.log()}")

    def log(self, whole=False):
        """What the daemon has said since it was last started (or ever)."""
        if not os.path.exists(self.log_file):
            return ""
        with open(self.log_file, "rb") as file:
            file.seek(0 if whole else self.log_start)
            return file.read().decode(errors="replace")

    def expect_log(self, pattern, patience=PATIENCE):
        try:
            return eventually(lambda: re.search(pattern, self.log()), f"a log line like /{pattern}/", patience)
        except AssertionError as error:
            raise AssertionError(f"{error}; the log is:\n{self.log()}") from None

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, number):
        self.process.send_signal(number)

    def reload(self):
        self.signal(signal.SIGHUP)

    def kill(self):
        """No goodbye."""
        self.signal(signal.SIGKILL)
        self.process.wait()

    def terminate(self, patience=PATIENCE):
        self.signal(signal.SIGTERM)
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"sluiced did not end within {patience:.0f} s of SIGTERM:\n{self.log()}") from None

    def check(self, config=None):
        """sluiced --check: (exit code, output)."""
        with self.namespace.inside():
            done = subprocess.run(self.wrapper + [find_program("sluiced"), "--check", config or self.config_file], text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.environment, timeout=120)
        return done.returncode, done.stdout

    def slots(self):
        """The live attachments as the kernel has them: dictionaries named as in bpf/layout.h."""
        found = []
        path = next(iter(glob.glob(f"{self.pins}/**/slots", recursive=True)), None)
        if path is None:
            return found
        for entry in json.loads(run("bpftool", "-j", "map", "dump", "pinned", path)):
            value = entry["formatted"]["value"] if "formatted" in entry else entry["value"]
            value = value["value"] if "value" in value else value
            if value["state"] == 1:
                value["mode"] = (value["word"] >> 28) & 3
                found.append(value)
        return found

    def slot_of(self, ifindex=None, cgroup_id=None):
        for slot in self.slots():
            if ifindex is not None and slot["ifindex"] == ifindex or cgroup_id is not None and slot["cgroup_id"] == cgroup_id:
                return slot
        return None

    def learned(self, ifindex):
        """Addresses that names have opened for an interface, as the kernel has them: {text: value as in bpf/layout.h}."""
        scope = self.slot_of(ifindex=ifindex)["scope"]
        path = glob.glob(f"{self.pins}/**/learned", recursive=True)[0]
        found = {}
        for entry in json.loads(run("bpftool", "-j", "map", "dump", "pinned", path)):
            key, value = (entry["formatted"][part] if "formatted" in entry else entry[part] for part in ("key", "value"))
            if key["scope"] == scope:
                address = ipaddress.IPv6Address(bytes(key["address"]))
                found[str(address.ipv4_mapped or address)] = value
        return found

    def program_tags(self):
        """What runs at each pinned link, as the kernel names it by its instructions: {"1-from": tag, ...}."""
        tags = {}
        for path in glob.glob(f"{self.pins}/links/*"):
            link = json.loads(run("bpftool", "-j", "link", "show", "pinned", path))
            tags[os.path.basename(path)] = json.loads(run("bpftool", "-j", "prog", "show", "id", link["prog_id"]))["tag"]
        return tags

    def live_slot(self, **which):
        """A LiveSlot of the attachment, for a test that watches its generation."""
        path = glob.glob(f"{self.pins}/**/slots", recursive=True)[0]
        for entry in json.loads(run("bpftool", "-j", "map", "dump", "pinned", path)):
            value = entry["formatted"]["value"] if "formatted" in entry else entry["value"]
            key = entry["formatted"]["key"] if "formatted" in entry else entry["key"]
            if value["state"] == 1 and all(value[name] == wanted for name, wanted in which.items()):
                return LiveSlot(path, key, json.loads(run("bpftool", "-j", "map", "show", "pinned", path)))
        raise LabError(f"no attachment with {which}")

    def stop(self):
        if self.is_running():
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.notify:
            self.notify.close()
            self.notify = None

    def forget(self):
        """Stops and removes every pin: the filter is gone."""
        self.stop()
        shutil.rmtree(self.pins, ignore_errors=True)
