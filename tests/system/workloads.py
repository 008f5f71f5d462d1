"""Processes under filter, and the cgroups that they live in."""

import os
import subprocess

from machine import LabError, cgroup_root, find_program, remove_cgroup


class Cgroup:
    """A cgroup2 directory. `add_child` makes one below."""

    def __init__(self, path):
        self.path = path
        os.makedirs(path)

    @property
    def name(self):
        """As plugins and policies name it: below the mount."""
        return self.path[len(cgroup_root()):]

    @property
    def id(self):
        return os.stat(self.path).st_ino

    def add_child(self, name):
        return Cgroup(f"{self.path}/{name}")

    def move_here(self, pid):
        with open(f"{self.path}/cgroup.procs", "w") as procs:
            procs.write(str(pid))

    def remove(self):
        remove_cgroup(self.path)


class Inhabitant:
    """tests/system/helpers/inhabitant.c: a process that opens sockets and sends as it is told; see there for the commands."""

    def __init__(self, namespace, cgroup=None):
        self.process = namespace.popen([find_program("inhabitant")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                       bufsize=1)
        # Before its first socket: it waits for the first command.
        if cgroup:
            cgroup.move_here(self.process.pid)

    def do(self, *words):
        """The answer to one command: "ok ...", or the name of an errno."""
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise LabError(f"the inhabitant ended at: {words}")
        return answer

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Pulse:
    """tests/system/helpers/pulse.c: sends frames from the first possible moment until stop(), which tells how many of each."""

    def __init__(self, namespace, *streams, interval_us=200):
        words = [find_program("pulse"), str(interval_us)]
        for device, frame in streams:
            words += [device, frame.hex()]
        self.process = namespace.popen(words, stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()

    def stop(self):
        self.process.terminate()
        sent = [int(word) for word in self.process.stdout.read().split()]
        self.process.wait()
        self.process.stdout.close()
        return sent
