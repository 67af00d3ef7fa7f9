"""Public benchmarks in the layouts of their repositories: the right clips, prompts, masks, and all else a row says."""

from __future__ import annotations

import json

import pytest

from ddim_lightning.data.benchmark import find_place, read_benchmark
from ddim_lightning.data.manifest import ClipRequest
from tests.benchmark_folders import write_davis, write_editboard, write_five, write_ivebench, write_tgve


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    return write_five(tmp_path_factory.mktemp("five"), count=9)


def list_places(benchmark):
    layout = benchmark.config.output
    return [str(find_place(layout, layout.edit, edit)) for edit in benchmark.edits]


def test_five_has_one_clip_for_all_edits_of_a_video_without_brackets(five):
    benchmark = read_benchmark("five", five)
    bus, girl, swan = benchmark.requests
    assert (bus.id, girl.id, swan.id) == ("0001_bus", "0002_girl-dog", "0003_blackswan")
    assert bus.prompts[:2] == ("a blue bus drives along a dirt road", "a truck drives along a street")
    assert bus.source_prompt == "a red bus drives along a street"
    assert (bus.source_prompts, swan.source_prompts) == ((), ("a swan", "a swan on a river"))
    assert girl.video == five / "videos" / "0002_girl-dog.mp4"  # there is no folder of frames
    assert {request.mask for request in benchmark.requests} == {None}
    assert all(edit.request.mask == five / "bmasks" / edit.clip for edit in benchmark.edits)
    assert [(edit.clip, edit.index, edit.table) for edit in benchmark.edits if edit.clip == bus.id] == [
        ("0001_bus", 0, "edit1_FiVE"),
        ("0001_bus", 1, "edit2_FiVE"),
        ("0001_bus", 2, "edit5_FiVE"),
    ]
    assert bus.rows[0]["instruction"] == "make it a blue bus drives along a [dirt road]"
    assert bus.rows[1]["editing_type_id"] == 2
    assert list_places(benchmark)[2:4] == ["0001_bus/5_a bus with a flag", "0002_girl-dog/1_a girl walks a small"]


def test_a_short_clip_has_all_of_its_frames_and_a_longer_one_what_is_asked_for(five):
    assert {request.num_frames for request in read_benchmark("five", five).requests} == {"all"}
    fewer = read_benchmark("five", five, default=ClipRequest(num_frames=5))
    assert {request.num_frames for request in fewer.requests} == {5}


def test_tables_are_chosen_by_name_and_masks_are_for_edits_where_that_is_asked_for(five):
    benchmark = read_benchmark("five", five, ["edit6_FiVE", "edit2_FiVE.json"], inside_masks=True)
    assert [edit.table for edit in benchmark.edits] == ["edit6_FiVE", "edit2_FiVE", "edit2_FiVE"]
    assert benchmark.requests[0].mask == five / "bmasks" / "0003_blackswan"
    assert benchmark.requests[0].mask_threshold == 0


def test_a_clip_is_inverted_under_each_of_its_source_prompts_where_inversions_have_them(five):
    requests = read_benchmark("five", five, by_source_prompt=True).requests
    swans = [(one.id, one.source_prompt, one.source_prompts) for one in requests if "swan" in one.id]
    assert swans == [("0003_blackswan", "a swan", ()), ("0003_blackswan-2", "a swan on a river", ())]


def test_davis_is_folders_of_frames_and_of_masks(tmp_path):
    root = write_davis(tmp_path)
    benchmark = read_benchmark("davis", root, inside_masks=True)
    assert [(one.id, one.prompts, one.fps) for one in benchmark.requests] == [("bear", (), 24), ("swing", (), 24)]
    assert benchmark.requests[1].mask == root / "Annotations/480p/swing"
    assert benchmark.edits == []
    table = tmp_path / "mine.csv"
    table.write_text("name,prompts,source_prompt,kind\nswing,a red swing|a swing in snow,a swing,color\n")
    benchmark = read_benchmark("davis", root, [str(table)])
    (swing,) = benchmark.requests
    assert (swing.prompts, swing.source_prompt) == (("a red swing", "a swing in snow"), "a swing")
    assert swing.rows[0]["kind"] == "color"
    assert [edit.prompt for edit in benchmark.edits] == ["a red swing", "a swing in snow"]


def test_editboard_is_a_script_whose_paths_begin_at_the_checkout(tmp_path):
    benchmark = read_benchmark("editboard", write_editboard(tmp_path))
    (bear,) = benchmark.requests
    assert bear.video == tmp_path / "sample/bear"
    assert (bear.prompts, bear.source_prompt) == (("a bear in autumn", "a panda, on rocks"), "a bear on rocks")
    assert benchmark.edits[0].request.mask == tmp_path / "sample/bear_mask"
    assert list_places(benchmark) == ["sample/bear_autumn", "sample/bear_panda"]


def test_tgve_is_a_sheet_with_titles_and_four_edits_a_row(tmp_path):
    benchmark = read_benchmark("tgve", write_tgve(tmp_path))
    assert [(one.id, len(one.prompts)) for one in benchmark.requests] == [
        ("gold-fish", 4),
        ("salsa", 4),
        ("volleyball", 4),
    ]
    assert benchmark.requests[1].video == tmp_path / "youtube_480p/480p_frames/salsa"
    assert benchmark.requests[1].source_prompt == "salsa moves"
    assert list_places(benchmark)[3:5] == ["DAVIS_480p/gold-fish/multiple", "youtube_480p/salsa/style"]
    assert [edit.prompt for edit in benchmark.edits[:2]] == ["gold-fish, Style", "gold-fish, Object"]


def test_ivebench_is_a_list_of_one_edit_a_clip(tmp_path):
    benchmark = read_benchmark("ivebench", write_ivebench(tmp_path))
    assert [(one.id, one.prompts, one.source_prompt) for one in benchmark.requests] == [
        ("dance", ("target 0",), "source 0"),
        ("river", ("target 1",), "source 1"),
    ]
    assert benchmark.requests[0].rows[0]["target_span"] == [0, 2]
    assert list_places(benchmark) == ["target/dance", "target/river"]  # evaluate.py leaves out the suffix


def test_a_benchmark_of_ones_own_is_a_config_of_a_few_lines(tmp_path):
    write_davis(tmp_path)
    (tmp_path / "list.jsonl").write_text('{"clip": "bear", "to": "a red bear", "level": 3}\n')
    config = tmp_path / "mine.yaml"
    config.write_text('title: Mine\nedits: "*.jsonl"\ncolumns: {video: "JPEGImages/480p/{clip}", prompts: to}\n')
    (bear,) = read_benchmark(str(config), tmp_path).requests
    assert (bear.id, bear.prompts, bear.rows[0]["level"]) == ("bear", ("a red bear",), 3)


ROW = {
    "video_name": "0001_bus",
    "source_prompt": "a",
    "target_prompt": "b",
    "save_dir": "1_b",
    "editing_type_id": 1,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target_prompt": None}, r"edit1_FiVE.json entry 2: must have the column target_prompt"),
        ({"target_prompt": 3}, r"edit1_FiVE.json entry 2, column target_prompt \(prompts\): must be prompts, .* got 3"),
        ({"target_prompt": ["b", ""]}, r"edit1_FiVE.json entry 2, column target_prompt \(prompts\): must be prompts"),
        ({"source_prompt": ["a"]}, r"edit1_FiVE.json entry 2, column source_prompt: must be text"),
        (
            {"video_name": "nothing"},
            r"edit1_FiVE.json entry 2, column video: none of images/nothing, videos/nothing.mp4",
        ),
        ({"video_name": None}, r"edit1_FiVE.json entry 2: must have the column video_name"),
    ],
)
def test_a_row_that_will_not_do_is_named_by_file_entry_and_key(five, tmp_path, change, said):
    for name in ("images", "videos", "bmasks"):
        (tmp_path / name).symlink_to(five / name)
    (tmp_path / "edit_prompt").mkdir()
    row = {name: value for name, value in {**ROW, **change}.items() if value is not None}
    (tmp_path / "edit_prompt" / "edit1_FiVE.json").write_text(json.dumps([ROW, row]))
    with pytest.raises((ValueError, OSError), match=said) as caught:
        read_benchmark("five", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"save_dir": None}, "entry 1: must have the column save_dir"),
        ({"target_prompt": "../../../b", "save_dir": "1_../../../b"}, "inside the folder of results"),
        ({"video_name": "0001_bus", "editing_type_id": None}, "entry 1: must have the column editing_type_id"),
    ],
)
def test_a_name_that_cannot_be_made_is_told(five, tmp_path, change, said):
    for name in ("images", "videos", "bmasks"):
        (tmp_path / name).symlink_to(five / name)
    (tmp_path / "edit_prompt").mkdir()
    row = {name: value for name, value in {**ROW, **change}.items() if value is not None}
    (tmp_path / "edit_prompt" / "edit1_FiVE.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=said):
        read_benchmark("five", tmp_path)


def test_rows_that_make_no_edit_are_told(five, tmp_path):
    for name in ("images", "videos", "bmasks"):
        (tmp_path / name).symlink_to(five / name)
    (tmp_path / "edit_prompt").mkdir()
    (tmp_path / "edit_prompt" / "edit1_FiVE.json").write_text(json.dumps([ROW, {**ROW, "target_prompt": " "}]))
    with pytest.warns(UserWarning, match=r"edit1_FiVE.json entry 2, column target_prompt \(prompts\)"):
        assert len(read_benchmark("five", tmp_path).edits) == 1
    config = tmp_path / "mine.yaml"
    config.write_text(
        "title: Mine\nedits: edit_prompt/*.json\ncolumns: {video: 'images/{video_name}'}\nskip_without: b\n"
    )
    with pytest.raises(ValueError, match=r"mine.yaml, key skip_without: .* got b"):
        read_benchmark(str(config), tmp_path)


def test_what_is_missing_of_a_benchmark_is_told(five, tmp_path):
    with pytest.raises(NotADirectoryError, match="folder: "):
        read_benchmark("five", tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"folder: .*FiVE-Bench"):
        read_benchmark("five", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"folder: .*DAVIS"):
        read_benchmark("davis", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"edits: .*edit1_FiVE.*, got 'edit9_FiVE'"):
        read_benchmark("five", five, ["edit9_FiVE"])
