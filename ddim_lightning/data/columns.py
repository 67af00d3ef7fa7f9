"""The columns of other people's tables are given our names."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ddim_lightning.data.listing import name_some
from ddim_lightning.data.rows import SHORT, Row

_FIELD = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Columns:
    """A `Columns` finds what a training needs in the rows of a table, whatever its columns are called.

    Args:
        known: Our names of the columns.
        required: Those of them that must be there.
        names: By our names, the table's: a column, or a text with columns in braces, ``edited/{file}`` for example.
            Empty means that the table has our names.

    Raises:
        ValueError: A name that is not ours, or a required one that is left out.
    """

    known: Sequence[str]
    required: Sequence[str]
    names: Mapping[str, str] = field(default_factory=dict)

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
                if one not in columns:
                    got = name_some(SHORT.repr(column) for column in columns) or "no column"
                    rule = "map yours with `columns`" if not self.names else f"`columns` takes {name} from it"
                    raise ValueError(f"{origin}: must have the column {one} ({rule}), got {got}")
        if not self.names and (others := [column for column in columns if column not in self.known]):
            known = ", ".join(self.known)
            warnings.warn(f"columns that are not used: {name_some(others)} (known are {known})", stacklevel=2)

    def take(self, origin: str, row: Row) -> dict[str, str]:
        """Take what a row says, by our names.

        Args:
            origin: Where the row stands.
            row: Its cells.

        Returns:
            Texts; what the row does not say is left out.

        Raises:
            ValueError: If a cell is no text, or a required one is empty.
        """
        taken = {}
        for name in self.known:
            text = self.names.get(name, "" if self.names else name)
            fields = _FIELD.findall(text) or [text]
            for one in fields:
                if not isinstance(row.get(one, ""), str):
                    raise ValueError(f"{origin}, column {one}: must be text, got {SHORT.repr(row[one])}")
            if all(row.get(one, "").strip() for one in fields):
                taken[name] = row[text] if fields == [text] else _fill(text, row)
            elif name in self.required:
                raise ValueError(f"{origin}, column {fields[0]}: must not be empty ({name})")
        return taken


def _fill(text: str, row: Row) -> str:
    return _FIELD.sub(lambda match: str(row[match[1]]), text)
