"""Confining the current process with what the system offers to an ordinary user.

`enter` applies every layer that it can and returns the names of those in force:

- `rlimits`     processor time, memory, no files written, no processes or threads, few open files
- `user`        root becomes nobody
- `namespaces`  no network, no view of other processes and of their shared memory (Linux)
- `readonly`    no file's mode or times changed (Linux >= 5.12, with namespaces)
- `landlock`    reads only Python's own folders, writes nothing (Linux >= 5.13)
- `seccomp`     no sockets, shared memory or new namespaces, less of the kernel (Linux)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import sysconfig

from . import seccomp

NOBODY = 65534
_NAMESPACES = 0x40000000 | 0x20000000 | 0x08000000 | 0x04000000 | 0x00020000
"""Network, processes, inter-process communication, host name, mounts."""
_NEW_USER = 0x10000000
_PDEATHSIG, _SET_DUMPABLE, _KEEP_CAPABILITIES, _NO_NEW_PRIVS = 1, 4, 8, 38
_DAC_READ_SEARCH = 1 << 2
_MOUNT_SETATTR, _HERE, _RECURSIVE = 442, -100, 0x8000
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read file, read folder
_FILE = 1 << 0 | 1 << 1 | 1 << 2  # what a rule on a single file may hold
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # file-system rights known to each ABI version


def enter(seconds: float, memory: int) -> list[str]:
    """Confines this process for good, to `seconds` of processor time and `memory` bytes.

    Execution continues in a child process where a process namespace needs one; the parent waits
    for it and exits.
    """
    layers = ["rlimits"]
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    root = os.geteuid() == 0
    # 1. Namespaces come first, because later layers refuse the calls that make them.
    if libc and _unshare(libc, root):
        layers.append("namespaces")
        if _all_read_only(libc):
            layers.append("readonly")
        _continue_in_child(libc)
    if libc:
        # 2. Landlock and seccomp ask an ordinary user for the flag "no new privileges".
        libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
        if _landlock(libc):
            layers.append("landlock")
    # 3. Root becomes nobody; the capabilities outlive the change and are cut down below.
    if root:
        if libc:
            libc.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0)
        # Groups first: without root's rights they cannot be changed any more.
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        layers.append("user")
    if libc:
        # Landlock says what may be read: reading root's own Python installation stays possible.
        _keep_capabilities(libc, _DAC_READ_SEARCH if root and "landlock" in layers else 0)
        libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after setuid, which clears it
        libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)  # no tracing by processes of the same user
    # 4. Limits come after the fork above, because they allow no further process.
    _limit(seconds, memory)
    # 5. seccomp is last, because it refuses calls that the steps above make.
    if libc and seccomp.refuse(libc):
        layers.append("seccomp")
    return layers


def has_landlock() -> bool:
    """Whether this kernel has Landlock."""
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, 1) >= 1


def _limit(seconds: float, memory: int) -> None:
    # The kernel counts whole seconds here, so the limit is rounded up.
    processor = max(1, int(seconds) + 1)
    wanted = {
        "RLIMIT_CPU": processor,
        "RLIMIT_AS": memory,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NPROC": 0,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }
    # The hard limit is set as well, so that the code cannot raise the soft one again.
    for name, value in wanted.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not all on every system
            resource.setrlimit(getattr(resource, name), (value, value))


def _unshare(libc, root: bool) -> bool:
    """Enters new namespaces; an ordinary user needs a user namespace for that."""
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(_NAMESPACES | (0 if root else _NEW_USER)) != 0:
        return False
    if not root:
        # The user keeps its own number inside. An ordinary user may write `gid_map` only after
        # `setgroups` is denied.
        lines = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
        for name, line in lines.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    return True


def _all_read_only(libc) -> bool:
    """Makes every mount read-only for this process, so that no file's mode or times can change."""
    # "Private" keeps the change from spreading to other namespaces.
    read_only, private = 1 | 2, 1 << 18  # and no set-user-id programs
    attributes = (ctypes.c_uint64 * 4)(read_only, 0, private, 0)  # struct mount_attr
    return libc.syscall(_MOUNT_SETATTR, _HERE, b"/", _RECURSIVE, attributes, 32) == 0


def _continue_in_child(libc) -> None:
    """Continues as the first process of the new process namespace; when it ends, all in it end.

    The parent stays outside, where nothing inside can reach it. It kills the child on SIGTERM or
    when its own parent dies, because the child could leave its group and drop its death signal.
    """
    # A SIGTERM waits until the handler below is there; it would end the parent and leave the child.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    child = os.fork()
    if child:
        for descriptor in range(256):
            with contextlib.suppress(OSError):
                os.close(descriptor)  # else the other side never sees the end of the channel
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
        libc.prctl(_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.waitpid(child, 0)
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _landlock(libc) -> bool:
    """Allows reading Python's own folders and nothing else; False if the kernel cannot do that."""
    version = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    # Only rights that this kernel knows, because an unknown one is an error.
    handled = (1 << _RIGHTS.get(version, 16)) - 1
    words = [handled]
    if version >= 4:
        words.append(0b11)  # TCP bind and connect
    if version >= 6:
        words.append(0b11)  # abstract sockets and signals out of this domain
    ruleset = libc.syscall(
        _CREATE_RULESET, (ctypes.c_uint64 * len(words))(*words), 8 * len(words), 0
    )
    if ruleset < 0:
        return False
    for path in _readable():
        # A path that cannot be opened is just not readable later.
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_PATH)
            allowed = _READ if os.path.isdir(path) else _READ & _FILE
            if path == os.devnull:
                # The null device may also be written, because output is sent there.
                allowed = _FILE & ~1
            # struct landlock_path_beneath_attr, packed: u64 allowed_access, s32 parent_fd
            rule = allowed.to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder)
            libc.syscall(_ADD_RULE, ruleset, 1, rule, 0)
            os.close(descriptor)
    held = libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return held


def _readable() -> set[str]:
    """Python's libraries and what the dynamic loader needs to load them."""
    paths = {*sysconfig.get_paths().values(), sys.base_prefix + "/lib", sys.prefix + "/lib"}
    paths |= {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"}
    paths |= {"/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", os.devnull}
    return {path for path in paths if os.path.exists(path)}


def _keep_capabilities(libc, bits: int) -> None:
    """Drops all capabilities but `bits`, also those that a new user namespace grants."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    # Effective, permitted and inheritable: the low 32 bits of each, then the high ones.
    libc.capset(header, (ctypes.c_uint32 * 6)(bits, bits, 0, 0, 0, 0))
