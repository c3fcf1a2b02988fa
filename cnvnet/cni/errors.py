"""The one error a CNI executable reports, and the spec's codes for it."""

from __future__ import annotations

# Checkers take it for typing's, whose import takes as long as all the rest of VERSION.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# CNI spec 1.1.0, section "Error", and containernetworking/cni pkg/types (8 is the library's own number).
INCOMPATIBLE_VERSION: Final = 1
UNSUPPORTED_FIELD: Final = 2
UNKNOWN_CONTAINER: Final = 3
INVALID_ENVIRONMENT: Final = 4
IO_FAILURE: Final = 5
DECODING_FAILURE: Final = 6
INVALID_CONFIG: Final = 7
INVALID_NETNS: Final = 8
TRY_AGAIN_LATER: Final = 11
NOT_AVAILABLE: Final = 50
LIMITED_CONNECTIVITY: Final = 51
# 100 and above are a plugin's own codes: CHECK found something else than ADD left.
NOT_AS_ADDED: Final = 100
INTERNAL: Final = 999


class CNIError(Exception):
    """What went wrong, as the CNI spec wants it reported: a numeric code, one line, optional details."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


class InvalidConfig(CNIError):
    """The configuration says something that cannot be done (code 7); nothing has been changed."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(INVALID_CONFIG, msg, details)


class CheckFailed(CNIError):
    """CHECK found something else than ADD left (code 100); nothing has been changed."""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(NOT_AS_ADDED, msg, details)
