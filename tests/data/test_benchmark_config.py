from __future__ import annotations

import re

import pytest

from ddim_lightning.data.benchmark_config import list_benchmarks, names_benchmark, read_benchmark_config

GOOD = 'title: Mine\nedits: "*.json"\ncolumns: {video: file}\n'


def test_the_shipped_configs_are_read():
    assert list(list_benchmarks()) == ["davis", "editboard", "five", "ivebench", "tgve"]
    assert names_benchmark("five") and names_benchmark("my/own.yaml") and not names_benchmark("memory")


def test_what_is_left_out_has_its_default(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    config = read_benchmark_config(str(path))
    assert (config.edits, config.num_frames, config.fit, config.output) == (["*.json"], None, "stretch", None)


@pytest.mark.parametrize("name", ["davis", "editboard", "five", "ivebench", "tgve"])
def test_published_numbers_have_a_source_and_columns(name):
    config = read_benchmark_config(name)
    columns = {number.number for number in config.numbers}
    for one in config.published:
        assert one.source and one.rows
        assert all({*row} - {"method"} <= columns for row in one.rows)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title: [", "must be YAML"),
        ("- a", "must be a mapping of title"),
        ('edits: "*"\ncolumns: {video: a}', "key title: must be given"),
        (GOOD + "frame: 3", "key frame: must be one of title"),
        (GOOD + "fit: squeeze", "key fit: must be one of crop, pad, stretch, got 'squeeze'"),
        (GOOD + "every: 0", "key every: must be an integer of at least 1, got 0"),
        (GOOD + "num_frames: some", "key num_frames: must be an integer, all or null, got 'some'"),
        (GOOD + "clips: '*'", "must have one of edits and clips, got both"),
        ("title: Mine\ncolumns: {video: a}", "must have one of edits and clips, got neither"),
        ('title: Mine\nedits: "*"\ncolumns: {prompts: a}', "key columns: must map video"),
        ('title: Mine\nedits: "*"\ncolumns: {video: 3}', "key columns: must map our columns to texts"),
        (GOOD + "output: {edits: a}", "key output, key edit: must be given"),
        (GOOD + "output: {edit: a, size: large}", "key output, key size: must be one of model, source"),
        (GOOD + "either: {a: b}", "key either: must map names to lists of paths"),
        (GOOD + "numbers: [{number: a}]", "key numbers, entry 1, key title: must be given"),
        (GOOD + "published: [{source: a, rows: [{psnr: 3}]}]", "key published, entry 1, key rows: must be a list"),
        (GOOD + "fit: crop\nnumbers: [{number: a, title: b}]", "key fit: must be stretch with numbers"),
        ('title: Mine\nedits: "*"\ncolumns: {video: a, prompt: b}', "got 'prompt' (did you mean prompts?)"),
        (GOOD + "optional: [mask]", "key optional: must be of video"),
        (GOOD + "fps: 0", "key fps: must be a number in 0.01 .. 1000, got 0"),
        (GOOD + "mask_threshold: 256", "key mask_threshold: must be a number in 0 .. 255, got 256"),
        ("title: Mine\nedits: /all/*.csv\ncolumns: {video: a}", "key edits: must be a list of globs inside the folder"),
        (GOOD + "output: {edit: a, table: ../b.csv}", "key output, key table: must be a path inside the folder"),
        (GOOD + "output: {edit: a, source: b}", "key output, key frames: must be given with source"),
        (GOOD + "output: {edit: a, frames: frame.png}", "key output, key frames: must be a name with one number"),
        (GOOD + "output: {edit: a, frames: '%d.mp4'}", "key output, key frames: must be a name with one number"),
        (GOOD + "numbers: [{number: a, title: b}, {number: a, title: c}]", "key numbers: must name a once, got 2"),
        (
            GOOD + "numbers: [{number: a, title: b}]\npublished: [{source: c, rows: [{method: d, e: 1}]}]",
            "key published: must have numbers of a, got e",
        ),
        (GOOD + "published: [{source: a, rows: [{method: b, c: .inf}]}]", "key rows: must be a list of mappings"),
    ],
)
def test_a_config_that_will_not_do_is_named_by_file_and_key(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}") as caught:
        read_benchmark_config(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_not_there_is_an_error_of_its_own(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_benchmark_config(str(tmp_path / "gone.yaml"))
