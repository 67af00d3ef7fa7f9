"""The columns of other people's tables are given our names."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ddim_lightning.data.listing import name_some
from ddim_lightning.data.rows import SHORT, Row

_FIELD = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Columns:
    """A `Columns` finds what is needed in the rows of a table, whatever its columns are called.

    Args:
        known: Our names of the columns.
        required: Those of them that must be there.
        names: By our names, the table's: a column, or a text with columns in braces, ``edited/{file}`` for example.
            Empty means that the table has our names.
        optional: Those of our names whose columns a table may lack.
        texts: Whether cells must be texts; what they are is the caller's to check otherwise.

    Raises:
        ValueError: A name that is not ours, or a required one that is left out.
    """

    known: Sequence[str]
    required: Sequence[str]
    names: Mapping[str, str] = field(default_factory=dict)
    optional: Collection[str] = ()
    texts: bool = True

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in self.known:
                nearest = "".join(f" (did you mean {one}?)" for one in difflib.get_close_matches(name, self.known, n=1))
                raise ValueError(f"columns: must map {', '.join(self.known)}, got {name!r}{nearest}")
        if self.names and (missing := [name for name in self.required if name not in self.names]):
            raise ValueError(f"columns: must map {', '.join(missing)} too, got only {', '.join(self.names)}")

    def check(self, origin: str, columns: Sequence[str]) -> None:
        """Check the columns of a table; those that are of no use to us are told where none are mapped.

        Args:
            origin: Where the columns are named.
            columns: The table's names.

        Raises:
            ValueError: If a column is not there that is needed.
        """
        wanted = {name: _FIELD.findall(text) or [text] for name, text in self.names.items()} or {
            name: [name] for name in self.required
        }
        for name, fields in wanted.items():
            for one in fields:
                if one not in columns and name not in self.optional:
                    got = name_some(SHORT.repr(column) for column in columns) or "no column"
                    rule = "map yours with `columns`" if not self.names else f"`columns` takes {name} from it"
                    raise ValueError(f"{origin}: must have the column {one} ({rule}), got {got}")
        if not self.names and (others := [column for column in columns if column not in self.known]):
            known = ", ".join(self.known)
            warnings.warn(f"columns that are not used: {name_some(others)} (known are {known})", stacklevel=2)

    def take(self, origin: str, row: Row) -> dict[str, Any]:
        """Take what a row says, by our names.

        Args:
            origin: Where the row stands.
            row: Its cells.

        Returns:
            Texts, and other cells where those may be; what the row does not say is left out.

        Raises:
            ValueError: If a cell is no text, or a required one is empty.
        """
        taken: dict[str, Any] = {}
        for name in self.known:
            text = self.names.get(name, "" if self.names else name)
            fields = _FIELD.findall(text) or [text]
            is_column = fields == [text]
            for one in fields:
                cell = row.get(one, "")
                if not isinstance(cell, str) and (self.texts or not (is_column or isinstance(cell, int))):
                    rule = "must be text" if self.texts else "must be text or an integer"
                    raise ValueError(f"{origin}, column {one}: {rule}, got {SHORT.repr(cell)}")
            if all(str(row.get(one, "")).strip() for one in fields):
                taken[name] = row[text] if is_column else fill(text, row)
            elif name in self.required:
                raise ValueError(f"{origin}, column {fields[0]}: must not be empty ({name})")
        return taken


def fill(text: str, row: Row) -> str:
    """Put the cells of a row into a text with columns in braces; a KeyError names one that is not there."""
    return _FIELD.sub(lambda match: str(row[match[1]]), text)
