"""What the tests do to this machine, and how it is undone: commands, waiting, and sweeping away what runs left behind.

Every name carries a prefix with the test's process id, so that a run that was killed is swept away by the next one.
"""

import atexit
import contextlib
import ctypes
import glob
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("SLUICE_BUILD_DIR", os.path.join(REPOSITORY, "build", "dev"))
FAMILY = "slt"  # every name of ours: slt<pid>...
PATIENCE = 120.0  # seconds until something that must happen is taken for lost; not a promise about speed

libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


class LabError(Exception):
    """The lab itself, not the thing under test, is at fault."""


def checked(result, what):
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def rounds(full, brief):
    """How often a test repeats: the full number with SLUICE_FULL=1 (tests/run.sh --full), else fewer."""
    return full if os.environ.get("SLUICE_FULL") == "1" else brief


def run(*words, check=True, **options):
    """Runs a command; its output is in the error when it fails."""
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, **options)
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(map(str, words))}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def eventually(question, what, patience=PATIENCE, pause=0.02):
    """Waits until `question()` is true and returns its answer; names `what` when it never is."""
    deadline = time.monotonic() + patience
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {patience:.0f} s")
        time.sleep(pause)


def find_program(name):
    """A program of the build folder, by its name."""
    for folder, folders, files in os.walk(BUILD):
        folders[:] = [f for f in folders if f != "CMakeFiles"]
        if name in files and os.access(os.path.join(folder, name), os.X_OK):
            return os.path.join(folder, name)
    raise LabError(f"{name}: not in {BUILD}; build it first: cmake --build {BUILD}")


# ---- cleaning up ------------------------------------------------------------------------------------------------------

_RECORDS = "/run/sluice-tests"  # one file per run: the processes it started, for a sweep after a kill


def _start_time(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None


def remember(pid):
    os.makedirs(_RECORDS, exist_ok=True)
    with open(f"{_RECORDS}/{FAMILY}{os.getpid()}", "a") as record:
        record.write(f"{pid} {_start_time(pid)}\n")


def cgroup_root():
    """Where the cgroup2 hierarchy is mounted."""
    with open("/proc/mounts") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[2] == "cgroup2":
                return fields[1]
    raise LabError("no cgroup2 file system is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup")


def bpffs_root():
    """/sys/fs/bpf, mounted when it is not."""
    with open("/proc/mounts") as mounts:
        if not any(line.split()[1:3] == ["/sys/fs/bpf", "bpf"] for line in mounts):
            run("mount", "-t", "bpf", "bpf", "/sys/fs/bpf")
    return "/sys/fs/bpf"


def remove_cgroup(path):
    for folder, _, _ in list(os.walk(path, topdown=False)):
        with contextlib.suppress(OSError):
            with open(f"{folder}/cgroup.kill", "w") as kill:
                kill.write("1")
        for _ in range(200):
            try:
                os.rmdir(folder)
                break
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.01)


def sweep(owner=None):
    """Removes what runs of dead processes (or of process `owner`) left: processes, namespaces, cgroups, pins, mounts, files."""

    def is_ours(name):
        match = re.match(rf"(?:sluice-test-)?{FAMILY}(\d+)x?", name)
        if not match:
            return False
        pid = int(match.group(1))
        return pid == owner if owner else not os.path.exists(f"/proc/{pid}")

    for record in glob.glob(f"{_RECORDS}/{FAMILY}*"):
        if is_ours(os.path.basename(record)):
            for line in open(record):
                pid, started = line.split()
                if _start_time(pid) == started:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            os.unlink(record)
    for name in os.listdir("/run/netns") if os.path.isdir("/run/netns") else []:
        if is_ours(name):
            run("ip", "netns", "delete", name, check=False)
    with contextlib.suppress(LabError):
        for name in os.listdir(cgroup_root()):
            if is_ours(name):
                remove_cgroup(f"{cgroup_root()}/{name}")
    for name in os.listdir("/sys/fs/bpf"):
        if is_ours(name):
            shutil.rmtree(f"/sys/fs/bpf/{name}", ignore_errors=True)
    for path in glob.glob(f"{tempfile.gettempdir()}/{FAMILY}*"):
        if is_ours(os.path.basename(path)):
            for line in open("/proc/mounts").read().splitlines():
                if line.split()[1].startswith(path + "/"):
                    run("umount", "-l", line.split()[1], check=False)
            shutil.rmtree(path, ignore_errors=True)


_owner = os.getpid()


def _sweep_own():
    if os.getpid() == _owner:
        sweep(_owner)


atexit.register(_sweep_own)
sweep()
# A polite kill is an exit, so that finalizers run.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(143)))


def die_with_parent():
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
