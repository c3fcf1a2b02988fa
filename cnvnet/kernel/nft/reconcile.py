"""A resident process keeps a table of ours as its text says, and undoes what other programs change."""

from __future__ import annotations

import errno

from cnvnet.kernel.nft.table_text import render_load, uses
from cnvnet.kernel.nft.tables import Nft, NftError, intact, loaded


class TableReconciler:
    """Reconciles one table.

    It compares the rules with those it has seen last, because their number stays the same when a rule is
    exchanged.
    """

    def __init__(self, family: str, table: str, version: str, text: str) -> None:
        self._family, self._table = family, table
        self._version, self._text = version, text
        self._seen = ""

    def repair(self, nft: Nft, *, needed: bool) -> bool:
        """Whether the table was damaged, of an older version, or missing though `needed`, and so was loaded.

        A newer version's is left alone. Raises NftError, also for one that a newer program would have to
        load.
        """
        family, table, version, text = self._family, self._table, self._version, self._text
        is_loaded = loaded(nft, family, table, version, text)
        if not is_loaded and not needed and not self._is_outdated(nft):
            return False
        changed = not is_loaded or self._is_changed(nft)
        if not is_loaded:
            nft.ensure(family, table, version, text)
        elif changed:
            nft.run(render_load(family, table, version, text, list(uses(text))))
        if changed and not loaded(nft, family, table, version, text):
            remedy = "damaged, and a newer program's to load again"
            raise NftError(errno.EBUSY, f"table {family} {table}: {remedy}")
        self._seen = self._rules(nft)
        return changed

    def _is_outdated(self, nft: Nft) -> bool:
        """Whether the table is there in one of the versions before."""
        base, _, number = self._version.rpartition("_v")
        return any(nft.chain(self._family, self._table, f"{base}_v{n}") for n in range(int(number)))

    def _is_changed(self, nft: Nft) -> bool:
        return bool(self._seen) and self._rules(nft) not in ("", self._seen)

    def _rules(self, nft: Nft) -> str:
        """A digest of this version's rules, "" where the chains are a newer version's."""
        if not intact(nft, self._family, self._table, self._text):
            return ""
        return nft.contents(self._family, self._table, uses(self._text))
