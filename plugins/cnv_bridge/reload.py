"""Changes of a table that another program may flush at any moment (`nft flush ruleset`)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.kernel.nft.tables import NftError

# A reload of the node's firewall flushes once; a change takes some milliseconds, loading the table 20.
_TRIES: Final = 10


def change_loaded(load: Callable[[], None], change: Callable[[], None]) -> None:
    """Loads what is missing of a table and changes it, both again when the table is taken away meanwhile.

    Either may be repeated. Raises NftError for what no repetition mends, and CNIError 11 when the table
    never stays for as long as the change takes.
    """
    refused: NftError | None = None
    for _ in range(_TRIES):
        try:
            load()
            change()
        except NftError as e:
            # EINVAL is nft's own answer, to a text about a table that has gone among others.
            if e.errno not in (errno.ENOENT, errno.EINVAL):
                raise
            refused = e
        else:
            return
    assert refused is not None
    if refused.errno != errno.ENOENT or "not loaded" not in str(refused):
        raise refused
    remedy = "another program flushes the node's nftables over and over"
    raise CNIError(TRY_AGAIN_LATER, f"{refused}: {remedy}") from refused
