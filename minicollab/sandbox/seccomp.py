"""The system calls that tested code does not get, as a filter for the kernel (seccomp(2), BPF).

The filter is assembled here and installed in the jail. It refuses what reaches past a process or
has been a way into the kernel; everything else is allowed, since interpreters need a lot.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
MACHINES = tuple(_ARCHITECTURES)

# name, number on x86_64, number on aarch64 ("-": there is none)
_NUMBERS = {
    name: dict(zip(MACHINES, numbers, strict=True))
    for name, *numbers in (
        line.split()
        for line in """
ptrace 101 117
process_vm_readv 310 270
process_vm_writev 311 271
process_madvise 440 440
kcmp 312 272
pidfd_getfd 438 438
mount 165 40
umount2 166 39
pivot_root 155 41
chroot 161 51
open_tree 428 428
move_mount 429 429
fsopen 430 430
fsconfig 431 431
fsmount 432 432
fspick 433 433
mount_setattr 442 442
name_to_handle_at 303 264
open_by_handle_at 304 265
fanotify_init 300 262
unshare 272 97
setns 308 268
clone 56 220
clone3 435 435
bpf 321 280
perf_event_open 298 241
userfaultfd 323 282
io_uring_setup 425 425
io_uring_enter 426 426
io_uring_register 427 427
keyctl 250 219
add_key 248 217
request_key 249 218
kexec_load 246 104
kexec_file_load 320 294
init_module 175 105
finit_module 313 273
delete_module 176 106
reboot 169 142
swapon 167 224
swapoff 168 225
acct 163 89
syslog 103 116
settimeofday 164 170
clock_settime 227 112
adjtimex 159 171
clock_adjtime 305 266
sethostname 170 161
setdomainname 171 162
iopl 172 -
ioperm 173 -
memfd_create 319 279
memfd_secret 447 447
shmget 29 194
shmat 30 196
shmctl 31 195
semget 64 190
semop 65 193
semctl 66 191
semtimedop 220 192
msgget 68 186
msgsnd 69 189
msgrcv 70 188
msgctl 71 187
mq_open 240 180
mq_unlink 241 181
socket 41 198
socketpair 53 199
kill 62 129
tkill 200 130
tgkill 234 131
rt_sigqueueinfo 129 138
rt_tgsigqueueinfo 297 240
pidfd_send_signal 424 424
fcntl 72 25
ioctl 16 29
setpriority 141 140
ioprio_set 251 30
sched_setparam 142 118
sched_setscheduler 144 119
sched_setaffinity 203 122
sched_setattr 314 274
prlimit64 302 261
migrate_pages 256 238
move_pages 279 239
chmod 90 -
fchmod 91 52
fchmodat 268 53
fchmodat2 452 452
chown 92 -
lchown 94 -
fchown 93 55
fchownat 260 54
utime 132 -
utimes 235 -
futimesat 261 -
utimensat 280 88
setxattr 188 5
lsetxattr 189 6
fsetxattr 190 7
setxattrat 463 463
removexattr 197 14
lremovexattr 198 15
fremovexattr 199 16
removexattrat 466 466
file_setattr 469 469
""".strip().splitlines()
    )
}


@dataclass(frozen=True)
class _Rule:
    """Calls get `error` as an answer (0: nothing is done, and the caller told that it was); only
    if argument `arg`, masked, is `value`, or is not where `unless`."""

    names: str
    error: int = errno.EPERM
    arg: int | None = None
    mask: int = 0xFFFFFFFF
    value: int = 0
    unless: bool = False


_NEW_NAMESPACES = 0x7E020080  # CLONE_NEW*
_AF_UNIX, _SOCK_STREAM = 1, 1
_RULES = (
    _Rule("""ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd
        mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr
        name_to_handle_at open_by_handle_at fanotify_init unshare setns
        bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
        keyctl add_key request_key kexec_load kexec_file_load init_module finit_module delete_module
        reboot swapon swapoff acct syslog settimeofday clock_settime adjtimex clock_adjtime
        sethostname setdomainname iopl ioperm"""),
    # Memory that belongs to no process would not be counted, and Landlock leaves the host's open.
    _Rule("""memfd_create memfd_secret shmget shmat shmctl semget semop semctl semtimedop
        msgget msgsnd msgrcv msgctl mq_open mq_unlink"""),
    _Rule("clone", arg=0, mask=_NEW_NAMESPACES, unless=True),
    # Its flags are out of sight; the C library then takes clone.
    _Rule("clone3", error=errno.ENOSYS),
    _Rule("socket", arg=0, value=_AF_UNIX, unless=True),
)
# Where there are no namespaces: processes of the same person, and what Landlock does not cover.
_RULES_WITHOUT_NAMESPACES = (
    _Rule("socket"),
    _Rule("socketpair", arg=1, mask=0xF, value=_SOCK_STREAM, unless=True),  # others can be sent anywhere
    _Rule("kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal"),
    _Rule("fcntl", arg=1, value=8),  # F_SETOWN: the kernel sends signals on one's behalf
    _Rule("fcntl", arg=1, value=15),  # F_SETOWN_EX
    _Rule("ioctl", arg=1, value=0x8901),  # FIOSETOWN
    _Rule("ioctl", arg=1, value=0x8902),  # SIOCSPGRP
    _Rule("setpriority ioprio_set migrate_pages move_pages"),
    _Rule("sched_setparam sched_setscheduler sched_setaffinity sched_setattr prlimit64", arg=0, unless=True),
    _Rule(
        """chmod fchmod fchmodat fchmodat2 chown lchown fchown fchownat utime utimes futimesat utimensat
        setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat
        file_setattr""",
        error=0,  # copying a file sets its mode: let it believe so
    ),
)

# BPF
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000  # from this number on, x86_64 has its calls a second time


def program(machine: str, namespaces: bool) -> bytes:
    """The filter for a machine (`platform.machine()`): an array of struct sock_filter."""
    rules = _RULES if namespaces else _RULES + _RULES_WITHOUT_NAMESPACES
    return b"".join(
        [
            _step(_LOAD, _ARCHITECTURE),
            _step(_EQUAL, _ARCHITECTURES[machine], 1, 0),
            _step(_RETURN, _KILL),
            _step(_LOAD, _NUMBER),
            _step(_AT_LEAST, _X32, 0, 1),
            _step(_RETURN, _KILL),
            *(part for rule in rules for part in _assemble(rule, machine)),
            _step(_RETURN, _ALLOW),
        ]
    )


def _assemble(rule: _Rule, machine: str) -> Iterator[bytes]:
    test = []
    if rule.arg is not None:
        fits, else_ = (1, 0) if rule.unless else (0, 1)
        test = [
            _step(_LOAD, _ARGUMENTS + 8 * rule.arg),
            _step(_AND, rule.mask),
            _step(_EQUAL, rule.value, fits, else_),
        ]
    rest = [*test, _step(_RETURN, _ERRNO | rule.error)]
    for number in (_NUMBERS[name][machine] for name in rule.names.split()):
        if number != "-":
            yield from (_step(_LOAD, _NUMBER), _step(_EQUAL, int(number), 0, len(rest)), *rest)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
