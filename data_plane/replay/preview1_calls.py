"""Every function of WASI preview 1 by name and type, and which method of `preview1` answers it."""

from collections.abc import Sequence
from typing import Final

from data_plane.replay.preview1 import (
    BADF,
    INVAL,
    MAX_U32,
    MAX_U64,
    NOTDIR,
    NOTSOCK,
    SPIPE,
    Preview1,
    Refused,
)

I32, I64 = "i32", "i64"
_STREAM_ANSWERS: Final = {
    "fd_advise": ((I32, I64, I64, I32), SPIPE),
    "fd_allocate": ((I32, I64, I64), SPIPE),
    "fd_datasync": ((I32,), INVAL),
    "fd_sync": ((I32,), INVAL),
    "fd_filestat_set_size": ((I32, I64), INVAL),
    "fd_filestat_set_times": ((I32, I64, I64, I32), INVAL),
    "fd_pread": ((I32, I32, I32, I64, I32), SPIPE),
    "fd_pwrite": ((I32, I32, I32, I64, I32), SPIPE),
    "fd_prestat_get": ((I32, I32), BADF),
    "fd_prestat_dir_name": ((I32, I32, I32), BADF),
    "fd_readdir": ((I32, I32, I32, I64, I32), NOTDIR),
    "fd_seek": ((I32, I64, I32, I32), SPIPE),
    "fd_tell": ((I32, I32), SPIPE),
    "path_create_directory": ((I32,) * 3, NOTDIR),
    "path_filestat_get": ((I32,) * 5, NOTDIR),
    "path_filestat_set_times": ((I32, I32, I32, I32, I64, I64, I32), NOTDIR),
    "path_link": ((I32,) * 7, NOTDIR),
    "path_open": ((I32, I32, I32, I32, I32, I64, I64, I32, I32), NOTDIR),
    "path_readlink": ((I32,) * 6, NOTDIR),
    "path_remove_directory": ((I32,) * 3, NOTDIR),
    "path_rename": ((I32,) * 6, NOTDIR),
    "path_unlink_file": ((I32,) * 3, NOTDIR),
    "sock_accept": ((I32,) * 3, NOTSOCK),
    "sock_recv": ((I32,) * 6, NOTSOCK),
    "sock_send": ((I32,) * 5, NOTSOCK),
    "sock_shutdown": ((I32,) * 2, NOTSOCK),
}
"""Calls that a run without directories can only be refused: their types, and what an open stream answers."""
_CALLS: Final = {
    "args_get": (I32, I32),
    "args_sizes_get": (I32, I32),
    "environ_get": (I32, I32),
    "environ_sizes_get": (I32, I32),
    "clock_res_get": (I32, I32),
    "clock_time_get": (I32, I64, I32),
    "fd_close": (I32,),
    "fd_fdstat_get": (I32, I32),
    "fd_fdstat_set_flags": (I32, I32),
    "fd_fdstat_set_rights": (I32, I64, I64),
    "fd_filestat_get": (I32, I32),
    "fd_read": (I32,) * 4,
    "fd_renumber": (I32, I32),
    "fd_write": (I32,) * 4,
    "poll_oneoff": (I32,) * 4,
    "proc_exit": (I32,),
    "proc_raise": (I32,),
    "random_get": (I32, I32),
    "sched_yield": (),
}
SIGNATURES: Final[dict[str, tuple[str, ...]]] = {
    **_CALLS,
    **{name: types for name, (types, _) in _STREAM_ANSWERS.items()},
    "path_symlink": (I32,) * 5,
}
"""Every function of preview 1 and the types of its parameters; each but proc_exit answers one i32."""


def call(wasi: Preview1, name: str, mem: memoryview, arguments: Sequence[int]) -> int:
    """Answer a call: 0 or an errno. Arguments are signed, as an engine gives them.

    Raises:
        GuestExit, LimitPassed: The guest must not run on.
    """
    types = SIGNATURES[name]
    plain = [
        value & (MAX_U32 if kind == I32 else MAX_U64) for value, kind in zip(arguments, types, strict=True)
    ]
    try:
        if name in _CALLS:
            getattr(wasi, name)(mem, *plain)
        elif name == "path_symlink":
            wasi.answer_stream(plain[2], NOTDIR)
        else:
            wasi.answer_stream(plain[0], _STREAM_ANSWERS[name][1])
    except Refused as refused:
        return refused.errno
    return 0
