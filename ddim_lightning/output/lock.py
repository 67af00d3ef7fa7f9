"""Locks keep processes apart that write into one folder; a lock ends with the process that holds it."""

from __future__ import annotations

import errno
import os
import stat
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from ddim_lightning.output.place import WORKPLACE, make_workplace

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


class RunLock:
    """A `RunLock` is held by every process of a run, so that no second run begins while one of them lives.

    The first process must have the file for itself when the run begins, and then shares it with the others. What a
    process starts by forking (the workers of a data loader) does not hold the lock.

    Args:
        output_dir: The output folder, which must exist.
    """

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self._file: FileIO | None = None

    def begin(self) -> None:
        """Take the lock for a new run.

        Raises:
            BlockingIOError: When another run holds it.
            OSError: When the file cannot be opened, or is a link.
        """
        while True:
            with suppress(FileNotFoundError):  # a run that ends takes away the file, and the folder it is in
                self._take(alone=True)
                if self._file is not None and _is_at(self._file, self.path):
                    break
            self.release()
        self._take(alone=False)

    def join(self) -> None:
        """Take the lock as another process of the run; ``Raises`` as `begin`."""
        self._take(alone=False)

    def release(self) -> None:
        """Let the lock go; does nothing where it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None
            _held.discard(self)

    def _take(self, *, alone: bool) -> None:
        if self._file is None:
            make_workplace(self.output_dir)
            self._file = _open(self.path)
            _held.add(self)
        try:
            _lock(self._file, alone=alone, wait=False)
        except BlockingIOError:
            self.release()
            rule = "must not be in use by another run; wait for its end, or choose another folder"
            raise BlockingIOError(f"output_dir: {rule}, got {str(self.output_dir)!r}") from None

    @property
    def is_held(self) -> bool:
        """Whether this process holds the lock."""
        return self._file is not None

    @property
    def path(self) -> Path:
        """The file."""
        return self.output_dir / WORKPLACE / "lock"


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _release_all() -> None:
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_all)


@contextmanager
def lock_file(path: Path) -> Iterator[FileIO]:
    """Open a file to read and append, made where it is not there, when no other process has it open in this way.

    Args:
        path: The file. A process that has it may replace it by another file; who waits then gets that one.

    Yields:
        The open file.

    Raises:
        OSError: When it cannot be opened, or is a link or no file.
    """
    while True:
        file = _open(path)
        with file:
            _lock(file, alone=True, wait=True)
            if _is_at(file, path):
                yield file
                return


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _open(path: Path) -> FileIO:
    try:
        file = FileIO(os.open(path, _FLAGS, 0o666), "r+")
    except OSError as error:
        rule = "must be a file that can be written to, and no link"
        raise type(error)(f"output_dir: {path} {rule}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"output_dir: {path} must be a file, but is something else")
    return file


def _lock(file: FileIO, *, alone: bool, wait: bool) -> None:
    if fcntl is None:
        return
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    try:
        fcntl.flock(file.fileno(), kind if wait else kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn("output_dir: this file system has no locks, so nothing keeps out a second run", stacklevel=2)
