"""What the operating system takes from a process that reads untrusted bytes: files, network, privileges, memory, time.

`confine` is for the process from which decoders are forked: it keeps what it has imported and opens nothing more.
`limit` is for each decoder. Resource limits hold on every Linux; Landlock (kernel 5.13 and later) adds that no path can
be opened, made, removed or executed, and from 6.7 and 6.12 on that nothing is connected to or signalled.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

#: Address space of a decoder: what `imagegen.inputs.decoding` admits, the file itself twice, and the interpreter.
MEMORY = 1_500_000_000
_NOBODY = 65534
#: prctl(2): PR_SET_NO_NEW_PRIVS.
_NO_NEW_PRIVS = 38
#: landlock(7). These two system calls have the same numbers on every architecture.
_CREATE_RULESET, _RESTRICT_SELF, _VERSION = 444, 446, 1
#: By the version of Landlock: file rights (bits), TCP rights from 4 on, and scopes from 6 on, all of each.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}


def confine() -> list[str]:
    """Gives up what a decoder does not need, for this process and all that it will fork.

    Returns:
        What this system did not allow, in words for the log.
    """
    missing = []
    with suppress(OSError):  # where memory is short, the kernel ends a decoder and not the worker
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if os.geteuid() == 0:  # root may exceed its limits
        try:
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
        except OSError:
            missing.append("root could not become another user, and may exceed resource limits")
    libc = ctypes.CDLL(None, use_errno=True)
    if not sys.platform.startswith("linux") or libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or not _landlock(libc):
        missing.append("no Landlock in this kernel; only resource limits keep decoders from files and the network")
    return missing


def _landlock(libc: ctypes.CDLL) -> bool:
    """Denies all that Landlock knows; whether this kernel has it."""
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    # struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped
    files = 2 ** _FILE_RIGHTS.get(version, 16) - 1
    rights = (ctypes.c_uint64 * 3)(files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 * (1 + (version >= 4) + (version >= 6))
    ruleset = libc.syscall(_CREATE_RULESET, rights, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    denied = libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return bool(denied)


def limit(seconds: int) -> None:
    """Limits this process for good: seconds of the processor, after which it is killed; memory; and no new file
    descriptor, so that it can neither open a file nor make a socket."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU, then SIGKILL
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
