"""What a test wants of a message: the parts that matter, whatever words stand between them."""

from __future__ import annotations

import re


def make_pattern(parts):
    """Return the pattern of a one-line message that has these parts in this order, ``…`` between them."""
    return "^" + ".*".join(re.escape(part.strip()) for part in parts.split("…"))
