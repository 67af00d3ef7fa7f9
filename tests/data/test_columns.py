from __future__ import annotations

import pytest

from ddim_lightning.data.columns import Columns

KNOWN, REQUIRED = ("video", "prompt", "split"), ("video", "prompt")


def test_a_name_is_a_column_and_braces_put_columns_together():
    columns = Columns(KNOWN, REQUIRED, {"video": "{folder}/{name}.mp4", "prompt": "text of it"})
    columns.check("here", ["name", "folder", "text of it", "other"])
    row = {"name": "{folder}", "folder": "x", "text of it": "a {name}", "other": 3}
    assert columns.take("here", row) == {"video": "x/{folder}.mp4", "prompt": "a {name}"}


def test_without_a_mapping_a_table_has_our_names_and_what_is_not_used_is_told():
    with pytest.warns(UserWarning, match="not used: source, fps"):
        Columns(KNOWN, REQUIRED).check("here", ["source", "prompt", "video", "fps"])
    assert Columns(KNOWN, REQUIRED).take("here", {"video": "a", "prompt": "b"}) == {"video": "a", "prompt": "b"}


@pytest.mark.parametrize(
    ("names", "named"),
    [
        ({"vidoe": "a"}, r"columns: .*'vidoe' \(did you mean video\?\)"),
        ({"video": "a"}, "columns: must map prompt too"),
    ],
)
def test_a_mapping_must_be_of_our_names(names, named):
    with pytest.raises(ValueError, match=named):
        Columns(KNOWN, REQUIRED, names)


@pytest.mark.parametrize("names", [{}, {"video": "file", "prompt": "{a}{b}"}])
def test_a_column_that_is_missing_is_named(names):
    with pytest.raises(ValueError, match=r"^here: must have the column (prompt|b) "):
        Columns(KNOWN, REQUIRED, names).check("here", ["video", "file", "a"])


@pytest.mark.parametrize(("cell", "named"), [(3, "column prompt: must be text, got 3"), ("  ", "column prompt")])
def test_a_cell_that_will_not_do_is_named(cell, named):
    with pytest.raises(ValueError, match=f"^here, {named}"):
        Columns(KNOWN, REQUIRED).take("here", {"video": "a", "prompt": cell})
