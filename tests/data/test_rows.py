"""Tables of three kinds give the same rows, and a mistake in one is told where it stands."""

from __future__ import annotations

import json

import pytest

from ddim_lightning.data.rows import read_rows

ROWS = [{"video": "a.mp4", "prompt": "a, b"}, {"video": "b.mp4"}]


def read(path):
    seen = []
    return list(read_rows(path, lambda origin, columns: seen.append((origin, columns)))), seen


def test_three_kinds_of_tables_give_the_same_rows(tmp_path):
    tables = {
        "t.csv": 'video,prompt\na.mp4,"a, b"\n\nb.mp4,\n',
        "t.jsonl": json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1] | {"prompt": None}) + "\n",
        "t.json": json.dumps(ROWS, indent=1),
    }
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
        assert [row for _, row in read(tmp_path / name)[0]] == ROWS
    (_, seen_csv), (_, seen_json) = read(tmp_path / "t.csv"), read(tmp_path / "t.json")
    assert seen_csv == [(f"{tmp_path}/t.csv row 1", ["video", "prompt"])]
    assert [origin for origin, _ in seen_json] == [f"{tmp_path}/t.json entry 1", f"{tmp_path}/t.json entry 2"]


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("t.json", '{"video": "a"}', "list of objects"),
        ("t.json", "[1]", "entry 1"),
        ("t.json", "[" * 100_000, "nested too deeply"),
        ("t.json", "[", "character 1"),
        ("t.json", "[]", "at least one row"),
        ("t.csv", "a,a\n1,2\n", "column a"),
        ("t.csv", "a,b\n1\n", "row 2"),
    ],
)
def test_a_mistake_is_told(tmp_path, name, text, named):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=named) as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_columns_without_a_name_may_be_several(tmp_path):
    (tmp_path / "t.csv").write_text("a,,\n1,,\n,,\n")
    assert [row for _, row in read(tmp_path / "t.csv")[0]] == [{"a": "1"}, {}]
