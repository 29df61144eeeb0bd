"""Refusing system calls that no solution needs (seccomp, Linux on x86-64 and 64-bit Arm).

These calls reach what the other layers leave open: memory that no limit counts (shared memory,
message queues), sockets of every family, new namespaces, keys, and parts of the kernel with a
history of faults.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

_SET_SECCOMP, _FILTER = 22, 2
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_REFUSED = {  # the call's number on x86-64, on 64-bit Arm
    "socket": (41, 198),  # socketpair, which asyncio needs, is another call
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "unshare": (272, 97),
    "setns": (308, 268),
    "ptrace": (101, 117),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
# The second value makes a call fail with error 1, "not permitted", and the program goes on.
_ALLOW, _NOT_PERMITTED = 0x7FFF0000, 0x00050001
_OTHER_ABI = 0x40000000  # x32: the same calls by other numbers


def refuse(libc) -> bool:
    """Refuses the calls from now on, if it can; the flag "no new privileges" must be set."""
    machine = os.uname().machine
    # A 32-bit Python on such a machine uses other numbers for its calls.
    if machine not in _AUDIT or sys.maxsize < 2**32:
        return False
    numbers = [pair[list(_AUDIT).index(machine)] for pair in _REFUSED.values()]
    left = len(numbers) + 1  # instructions between the second load and the refusal
    # Each line is (code, jump if true, jump if false, value); a jump counts instructions to skip.
    program = [
        # Offset 4 of the kernel's record of the call is the architecture, offset 0 the number.
        (_LOAD, 0, 0, 4),
        (_EQUAL, 0, left + 2, _AUDIT[machine]),
        (_LOAD, 0, 0, 0),
        # Calls of another architecture or of x32 have other numbers, so they are all refused.
        (_AT_LEAST, left, 0, _OTHER_ABI),
        *((_EQUAL, left - i, 0, number) for i, number in enumerate(numbers, start=1)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _NOT_PERMITTED),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    # The kernel reads the program by its address, so `code` must live until the call.
    holder = struct.pack("HP", len(program), ctypes.addressof(code))  # struct sock_fprog
    return libc.prctl(_SET_SECCOMP, _FILTER, holder, 0, 0) == 0
