"""The log of a program that keeps running: one line per event on stderr, JSON for machines or text."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Final, TextIO

from cnvnet.cni.document import escaped

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("json", "text")
# How long a line waits, in seconds, for a reader of the log: calls must not wait for it.
_PATIENCE: Final = 0.25
# In text, a value with one of these, or an empty one, stands in quotes.
_AMBIGUOUS: Final = re.compile(r'[\s"=]|^$')

_NUMBERS: Final[Mapping[str, int]] = {name: getattr(logging, name.upper()) for name in LEVELS}
_logger: Final = logging.getLogger("cnvnet")


def configure(level: str, form: str) -> None:
    """One of LEVELS and one of FORMATS; for the whole process, libraries included."""
    handler = _Handler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # no line says them
    logging.raiseExceptions = False  # a program whose log cannot be written works all the same


def lost() -> int:
    """How many lines could not be written, for want of a reader, since the last one that was."""
    return sum(each.lost for each in logging.getLogger().handlers if isinstance(each, _Handler))


def limit(fd: int, path: str, most: int) -> None:
    """Start a log file anew when it has grown too long.

    Where `fd`, opened to append, is the file at `path` and has more than `most` bytes, these move to
    `path`.1.
    """
    try:
        status = os.fstat(fd)
        if status.st_size > most and os.path.samestat(status, os.stat(path)):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            kept = os.open(f"{path}.1", flags, 0o600)
            with open(path, "rb") as old, os.fdopen(kept, "wb") as new:
                shutil.copyfileobj(old, new)
            os.ftruncate(fd, 0)
    except OSError:
        pass  # there is no such file, or no room for another: the next call may succeed


# A line's fields are whatever belongs to the event, so here, and only here, they are keywords.
def debug(msg: str, **fields: object) -> None:
    """Log a message with its fields at level debug."""
    at("debug", msg, **fields)


def info(msg: str, **fields: object) -> None:
    """Log a message with its fields at level info."""
    at("info", msg, **fields)


def warning(msg: str, **fields: object) -> None:
    """Log a message with its fields at level warning."""
    at("warning", msg, **fields)


def error(msg: str, **fields: object) -> None:
    """Log a message with its fields at level error."""
    at("error", msg, **fields)


def at(level: str, msg: str, **fields: object) -> None:
    """At one of LEVELS."""
    if is_enabled(level):
        _write(_NUMBERS[level], msg, fields)


def failure(msg: str, **fields: object) -> None:
    """A warning that is written whatever the level: that a call has failed is always wanted."""
    _write(logging.WARNING, msg, fields)


def crash(msg: str, **fields: object) -> None:
    """An error with the traceback of the exception that is being handled, as the field `trace`."""
    _write(logging.ERROR, msg, {**fields, "trace": traceback.format_exc().rstrip()})


def is_enabled(level: str) -> bool:
    """Whether lines of this level, one of LEVELS, are written."""
    return _logger.isEnabledFor(_NUMBERS[level])


def _write(level: int, msg: str, fields: dict[str, object]) -> None:
    # Not by the logger's methods, which look up their caller's file and line for every record.
    record = logging.LogRecord(_logger.name, level, "", 0, msg, (), None)
    record.__dict__["fields"] = fields
    _logger.handle(record)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """A line of a library has none but its traceback."""
    fields: dict[str, object] = getattr(record, "fields", {})
    return {"trace": logging.Formatter().formatException(record.exc_info)} if record.exc_info else fields


class _Handler(logging.Handler):
    """Calls wait for no reader of the log: a journal that hangs leaves a pipe or a socket that is full.

    A line that finds no room for a moment is lost, and so are the next ones, at once, until there is room
    again: then the log says how many.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """None is what Python makes of a stderr that is closed."""
        super().__init__()
        self._stream = stream
        self._poll = select.poll()
        self._is_cut = False
        self.lost = 0
        self._fd = -1
        try:
            if stream is not None:
                self._fd = stream.fileno()
                self._poll.register(self._fd, select.POLLOUT)
        except OSError:
            pass  # a stream in memory

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if self.lost and self._has_written(self.format(self._gap())):
                self.lost = 0
            if self.lost or not self._has_written(line):
                self.lost += 1
        except Exception:  # noqa: BLE001 -- as each handler of the library does
            self.handleError(record)

    def _gap(self) -> logging.LogRecord:
        record = logging.LogRecord(_logger.name, logging.WARNING, "", 0, "log lines are lost", (), None)
        record.__dict__["fields"] = {"lines": self.lost}
        return record

    def _has_written(self, line: str) -> bool:
        if self._fd < 0:
            if self._stream is not None:
                self._stream.write(f"{line}\n")
            return True
        left = f"{line}\n".encode(errors="backslashreplace")
        if self._is_cut:
            left = b"\n" + left
        patience = 0.0 if self.lost else _PATIENCE
        try:
            while left:
                if not self._poll.poll(patience * 1000):
                    return False
                # Room for so much is what a pipe that is ready has: more of it would wait.
                left = left[os.write(self._fd, left[: select.PIPE_BUF]) :]
                self._is_cut = bool(left)
        except OSError:
            return False
        return True


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        document = {
            "ts": _utc(record),
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
            **_fields(record),
        }
        return json.dumps(document, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = dict(_fields(record))
        trace = fields.pop("trace", None)
        words = [_utc(record), f"{record.levelname.lower():7}", escaped(record.getMessage())]
        words += [f"{name}={_value(value)}" for name, value in fields.items()]
        return "\n".join([" ".join(words), *map(escaped, str(trace or "").splitlines())])


def _utc(record: logging.LogRecord) -> str:
    """RFC 3339 with milliseconds, in UTC."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _value(value: object) -> str:
    """As text, in quotes where it could be taken for more than one value."""
    text = str(value)
    return escaped(json.dumps(text, ensure_ascii=False) if _AMBIGUOUS.search(text) else text)
