"""Files opened only if they are regular: a pipe could wait forever, a link leads elsewhere."""

from __future__ import annotations

import errno
import os
import stat

from malt_jax.errors import UserError


def open_regular(path: str | os.PathLike, flags: int) -> int:
    """Opens a regular file like `os.open`; refuses pipes and devices, and links when writing.

    Reading from a pipe could wait forever, and writing through a link would change a file that
    does not belong to the run.
    """
    if flags & (os.O_WRONLY | os.O_RDWR):
        flags |= os.O_NOFOLLOW
    try:
        handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        found = "a link" if error.errno == errno.ELOOP else "not a regular file"
    else:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
        os.close(handle)
        found = "not a regular file"
    raise UserError(f"{path}: is {found}; put the file itself there, or remove it.")


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a regular file."""
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read()
