"""The script that runs one program which nobody has read: it limits itself, then executes it. Standard library alone.

It is started by code_runner.py, never imported by what runs here. Standard input: JSON with the program, a word that
nobody can guess, and limits. The word goes to standard output only when the program came to its end.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import struct
import sys

ALLOWED_X86_64 = (
    # read, write, close, stat, fstat, lstat, poll, lseek, mmap, mprotect, munmap, brk, rt_sigaction, rt_sigprocmask,
    # rt_sigreturn, pread64, readv, writev, access; no ioctl, which types into terminals
    *range(16),
    17, 19, 20, 21,
    # sched_yield, mremap, madvise, dup, nanosleep, getpid, exit, uname, getcwd, readlink, gettimeofday; no fcntl, which
    # can have signals sent
    24, 25, 28, 32, 35, 39, 60, 63, 79, 89, 96,
    # getrusage, sysinfo, times, getuid, getgid, geteuid, getegid, getppid, sigaltstack, gettid, time, futex
    98, 99, 100, 102, 104, 107, 108, 110, 131, 186, 201, 202,
    # getdents64, clock_gettime, clock_getres, clock_nanosleep, exit_group, newfstatat, readlinkat, faccessat,
    # getrandom, statx, faccessat2
    217, 228, 229, 230, 231, 262, 267, 269, 318, 332, 439,
)  # fmt: skip
"""Calls of the Linux kernel that a program can make; every other one is refused: no process, no socket, no signal."""
OPENS = ((2, 24), (257, 32))
"""open and openat, with the place of their flags in seccomp_data: allowed for reading alone."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REFUSED, ALLOW, KILL = 0x00050000 | 1, 0x7FFF0000, 0x80000000
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06


def main() -> None:
    """Read what to do, limit this process for good, execute the program, and say that it came to its end."""
    task = json.loads(sys.stdin.buffer.read())
    result = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    _limit(task["cpu_seconds"], task["memory_bytes"])
    if not _only_allowed_calls():
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    verdict = _verdict(task["program"])
    os.write(result, json.dumps([task["word"], *verdict]).encode()[:4096])
    os._exit(0)  # threads and exit handlers of the program have no say


def _verdict(program: str) -> tuple[str, str]:
    """("passed" | "failed" | "error" | "memory", what was raised)."""
    try:
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})
    except MemoryError:
        return "memory", "MemoryError"
    except AssertionError as error:
        return "failed", _said(error)
    except BaseException as error:
        return "error", _said(error)
    return "passed", ""


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {str(error)[:200]}"
    except BaseException:
        return type(error).__name__


def _limit(cpu_seconds: int, memory_bytes: int) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
    ):
        resource.setrlimit(kind, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))


def _only_allowed_calls() -> bool:
    """Let the kernel refuse all other calls from now on; False where that cannot be said on this platform."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.maxsize <= 2**32:
        return False
    code = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, 0xC000003E), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    for number, flags in OPENS:
        code += [
            (EQUAL, 0, 4, number),
            (LOAD, 0, 0, flags),
            (ANY_BIT, 0, 1, WRITES),
            (RETURN, 0, 0, REFUSED),
            (RETURN, 0, 0, ALLOW),
        ]
    for number in ALLOWED_X86_64:
        if number != 2:
            code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    code.append((RETURN, 0, 0, REFUSED))
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(packed)))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, filter_mode = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0):
        return False
    return not libc.prctl(seccomp, filter_mode, ctypes.c_void_p(ctypes.addressof(program)), 0, 0)


if __name__ == "__main__":
    main()
