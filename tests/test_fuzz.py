"""Whatever stands in a manifest, in a config or on a command line: a result, or one line of ours.

A few examples run by default, the same every time; ``make fuzz`` runs thousands of new ones.
"""

from __future__ import annotations

import csv
import io
import json
import os
import string

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddim_lightning.cli.checks import check_edit, check_model
from ddim_lightning.cli.main import WRONG_USAGE, main
from ddim_lightning.cli.parser import make_parser, read_options
from ddim_lightning.data.manifest import ClipRequest, find_clips
from ddim_lightning.output.place import check_output_dir
from ddim_lightning.report.mistakes import DEBUG, explain
from ddim_lightning.report.text import make_plain

COUNT = int(os.environ.get("FUZZ_EXAMPLES", "0"))
fuzz = settings(
    max_examples=COUNT or 25,
    derandomize=not COUNT,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

# fmt: off
COLUMNS = (
    "video", "prompts", "source_prompt", "negative_prompt", "start", "num_frames", "seed", "id", "mask", "first_frame",
)
# Text with what breaks parsers more often than chance would have it, and halves of characters.
TRICKY = (
    "null", "~", "- a", "a: b", "#1", "{", "[", "]", '"', "'", "&a", "*a", "!t", "%", "|", ">", "@", "`", "--", "-",
    "\x00", "\x1b[31m", "\n", "\r", "\ud83d", "\udce9", "\u2028", "\ufeff", "..", "/", "~x", "é", "😀",
    "1e999", "NaN", "0x1",
    "9" * 5000, "a" * 300, "clip.mp4", "clip*", "sub", "true", "${x}", "\\", ",", "|a", "1_0", "-1", " ",
)
# fmt: on
tricky = st.sampled_from(TRICKY)
text = st.lists(tricky | st.text(max_size=5), max_size=4).map("".join)
scalar = st.none() | st.booleans() | st.integers() | st.floats() | text
value = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=6
)
deep = st.integers(1, 30_000).flatmap(lambda count: st.sampled_from(['{"a":' * count, "[" * count, "- " * count]))


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_text("not looked into")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_line(error, named=""):
    """See that a mistake is told in one short line that is no name of an exception."""
    line = make_plain(explain(error))
    assert line
    assert named in line
    assert DEBUG not in line, line
    assert len(line) < 2000


def read_manifest(path):
    try:
        requests = find_clips(path, ClipRequest())
    except (ValueError, OSError) as error:
        check_line(error, path.name)
    else:
        assert requests
        assert len({request.id.casefold() for request in requests}) == len(requests)
        for request in requests:
            assert (path.parent / "out" / request.id).resolve().parent == path.parent / "out"


row = st.dictionaries(st.sampled_from(COLUMNS), value, max_size=5) | st.fixed_dictionaries(
    {"video": st.just("clip.mp4")}, optional=dict.fromkeys(COLUMNS[1:], value)
)
json_line = st.one_of(row.map(json.dumps), value.map(json.dumps), text, deep)
csv_row = st.lists(text, max_size=4) | st.builds(lambda cells: ["clip.mp4", *cells], st.lists(text, max_size=3))


def write_csv(rows):
    file = io.StringIO()
    csv.writer(file).writerows([[cell.replace("\x00", "") for cell in cells] for cells in rows])
    return file.getvalue()


csv_text = st.builds(
    lambda columns, rows: write_csv([["video", *columns], *rows]),
    st.lists(st.sampled_from(COLUMNS[1:]) | text, max_size=3),
    st.lists(csv_row, max_size=4),
)


@fuzz
@given(lines=st.lists(json_line, max_size=4), table=csv_text | text, noise=st.binary(max_size=30))
def test_manifests(here, lines, table, noise):
    (here / "clips.jsonl").write_bytes(
        "\n".join(lines).encode("utf-8", "surrogatepass" if len(noise) % 2 else "replace")
    )
    (here / "clips.csv").write_bytes(table.encode("utf-8", "replace"))
    (here / "noise.csv").write_bytes(b"video\n" + noise)
    for name in ("clips.jsonl", "clips.csv", "noise.csv"):
        read_manifest(here / name)


FLAGS = sorted(
    flag for action in make_parser("edit")._actions for flag in action.option_strings if flag not in ("-h", "--help")
)
flag = st.sampled_from(FLAGS) | st.text(string.ascii_lowercase + "-_.", max_size=8).map("--".__add__)
number = st.integers(-3, 100).map(str)
argument = number | text | deep | value.map(json.dumps)
word = st.one_of(
    st.tuples(flag).map(list),
    st.builds(lambda name, what: [f"{name}={what}"], flag, argument),
    st.builds(lambda name, what: [name, what], flag, argument),
    argument.map(lambda what: [what]),
)


def try_edit(words):
    """Read the options of `edit`, as far as it goes without a model."""
    try:
        options = read_options("edit", words)
        check_edit(**options)
        check_output_dir(options["run"].output, "output")
        check_model(**options)
    except SystemExit:  # after it has printed what was asked for
        pass
    except Exception as error:
        check_line(error)


@fuzz
@given(words=st.lists(word, max_size=5))
@pytest.mark.usefixtures("here")
def test_command_lines(words):
    flat = [one.replace("\x00", "") for part in words for one in part]  # no system passes that one on
    try_edit(["clip.mp4", "--prompt", "a", "--output", "out", *flat])


@fuzz
@given(
    options=st.dictionaries(
        st.sampled_from([flag.lstrip("-").replace("-", "_") for flag in FLAGS]) | text, value, max_size=4
    ),
    rest=text | deep | st.just(""),
)
def test_configs(here, options, rest):
    dumped = yaml.safe_dump(options, allow_unicode=True) if options else ""
    (here / "edit.yaml").write_text(dumped + rest, encoding="utf-8", errors="replace")
    try_edit(["clip.mp4", "--prompt", "a", "--output", "out", "--config", "edit.yaml"])


def test_a_mistake_leaves_the_command_line_with_its_status(here, capsys):
    assert main(["edit", "clip.mp4", "--prompt", "a", "--output", "out", "--editor", '{"a":' * 20_000]) == WRONG_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: editor: ") and len(line) < 1000
