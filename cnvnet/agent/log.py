"""What the agent says: one line per event on stderr, as JSON for machines or as text for people."""

from __future__ import annotations

import json
import logging
import time
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("json", "text")

_logger: Final = logging.getLogger("cnvnet.agent")


def configure(level: str, form: str) -> None:
    """One of LEVELS and one of FORMATS; for the whole process, libraries included."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.raiseExceptions = False  # nothing depends on anybody's reading it


# A line's fields are whatever belongs to the event, so here, and only here, they are keywords.
def debug(msg: str, **fields: object) -> None:
    _logger.debug(msg, extra={"fields": fields})


def info(msg: str, **fields: object) -> None:
    _logger.info(msg, extra={"fields": fields})


def warning(msg: str, **fields: object) -> None:
    _logger.warning(msg, extra={"fields": fields})


def error(msg: str, **fields: object) -> None:
    _logger.error(msg, extra={"fields": fields})


def crash(msg: str, **fields: object) -> None:
    """An error with the traceback of the exception that is being handled, as the field `trace`."""
    _logger.error(msg, exc_info=True, extra={"fields": fields})


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = dict(getattr(record, "fields", {}))
    if record.exc_info:
        fields["trace"] = logging.Formatter().formatException(record.exc_info)
    return fields


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document = {
            "ts": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
            **_fields(record),
        }
        return json.dumps(document, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = _fields(record)
        trace = fields.pop("trace", None)
        words = [clock, f"{record.levelname.lower():7}", record.getMessage()]
        words += [f"{name}={value}" for name, value in fields.items()]
        return " ".join(words) + (f"\n{trace}" if trace else "")
