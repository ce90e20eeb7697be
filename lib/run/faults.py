"""What the system says of disks, folders, memory and processes, as sentences for the user with the way out."""

import errno

from lib.errors import PipelineError
from lib.files import run_out

AGAIN = "run the same command again, it resumes"
RAN_OUT = {
    errno.ENOSPC: f"the disk is full; free some space and {AGAIN}",
    errno.EDQUOT: f"the disk is full, your quota of it is used up; free some space and {AGAIN}",
    errno.EFBIG: f"the system allows no file as large as this one; raise the limit (ulimit -f) and {AGAIN}",
    errno.EIO: f"the disk did not do what was asked of it (input/output error); look at the disk, then {AGAIN}",
    errno.ENOMEM: f"the memory is full; with fewer workers, a smaller batch, crop or tile, {AGAIN}",
    errno.EMFILE: f"too many files are open; raise the limit (ulimit -n), or with fewer workers {AGAIN}",
    errno.ENFILE: f"too many files are open on this machine; {AGAIN} later",
}
ANOTHER = "name another path"
OF_PATHS = {
    errno.ENOENT: "was it removed or renamed meanwhile? Put it back, or name another path",
    errno.EEXIST: "a file stands where a folder should be; remove it, or name another path",
    errno.ENOTDIR: "a file stands where a folder should be; remove it, or name another path",
    errno.EISDIR: "a folder stands where a file should be; remove it, or name another path",
    errno.EACCES: "change its permissions, or name another path",
    errno.EPERM: "change its permissions, or name another path",
    errno.EROFS: "it cannot be written to; name another path, such as another --workdir",
    errno.ENAMETOOLONG: ANOTHER,
    errno.ELOOP: ANOTHER,
    errno.ENOTSUP: "this file system cannot do it; name another path, such as another --workdir",
    errno.ESTALE: f"the file system was detached meanwhile; {AGAIN}",
}
"""What the system says of one path that cannot be read or written."""


def sentence(error: BaseException) -> str:
    """Say what of the machine is behind an error, and the way out; "" where nothing of the machine is."""
    if isinstance(error, PipelineError):
        return ""
    path = getattr(error, "filename", None)
    where = f"{path}: " if path is not None else ""
    if (number := run_out(error)) is not None:
        return where + RAN_OUT[number]
    if isinstance(error, OSError) and where and error.errno in OF_PATHS:
        return f"{where}{error.strerror}; {OF_PATHS[error.errno]}"
    return ""
