from __future__ import annotations

import json
import re
import sys

import pytest

from ddim_lightning.data.manifest import ClipRequest, find_clips, read_manifest
from tests.data.messages import make_pattern

DEFAULT = ClipRequest(prompts=("a dog",), source_prompt="a cat", negative_prompt="blur", start=3, num_frames=9)
HEADER = "video,prompts,source_prompt,negative_prompt,start,num_frames,seed,id\n"


@pytest.fixture
def folder(tmp_path):
    for name in ("b.mp4", "a.mov", "A.mp4", "notes.txt", ".hidden.mp4", "c.MKV"):
        (tmp_path / name).write_text("not looked into")
    (tmp_path / "sub.mp4").mkdir()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "d.mp4").touch()
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    return tmp_path


def names(requests):
    return [(request.id, request.video.name) for request in requests]


def test_a_folder_gives_its_videos_by_name_with_ids_that_differ_also_without_case(folder):
    requests = find_clips(folder, DEFAULT)
    assert names(requests) == [("A", "A.mp4"), ("a-2", "a.mov"), ("b", "b.mp4"), ("c", "c.MKV"), ("gone", "gone.mp4")]
    assert {request.prompts for request in requests} == {("a dog",)}
    assert {(request.start, request.num_frames) for request in requests} == {(3, 9)}


def test_a_row_may_ask_for_all_frames(folder):
    (folder / "clips.csv").write_text("video,num_frames\nb.mp4,all\na.mov,\nA.mp4,17\n")
    (folder / "clips.jsonl").write_text('{"video": "b.mp4", "num_frames": "all"}\n')
    assert [request.num_frames for request in find_clips(folder / "clips.csv", DEFAULT)] == ["all", 9, 17]
    assert [request.num_frames for request in find_clips(folder / "clips.jsonl", DEFAULT)] == ["all"]


def test_a_glob_gives_videos_only(folder):
    assert names(find_clips(f"{folder}/[ab].*", DEFAULT)) == [("a", "a.mov"), ("b", "b.mp4")]
    assert names(find_clips(f"{folder}/**/d*", DEFAULT)) == [("d", "d.mp4")]


def test_what_exists_under_the_name_is_no_glob(tmp_path):
    (tmp_path / "take [1].mp4").touch()
    assert names(find_clips(str(tmp_path / "take [1].mp4"), DEFAULT)) == [("take_1_", "take [1].mp4")]


def test_a_file_and_a_list_keep_their_order(folder):
    assert names(find_clips(str(folder / "b.mp4"), DEFAULT)) == [("b", "b.mp4")]
    requests = find_clips([folder / "c.MKV", str(folder / "b.mp4"), folder / "more" / ".." / "b.mp4"], DEFAULT)
    assert names(requests) == [("c", "c.MKV"), ("b", "b.mp4"), ("b-2", "b.mp4")]


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("my holiday (1)", "my_holiday_1_"),
        ("..", "clip"),
        ("-f", "f"),
        ("été", "été"),
        ("x" * 90, "x" * 58),
        ("?!", "_"),
    ],
)
def test_ids_are_safe_folder_names(tmp_path, stem, name):
    (tmp_path / f"{stem}.mp4").touch()
    assert find_clips([tmp_path / f"{stem}.mp4"], DEFAULT)[0].id == name


def test_no_clip_is_called_as_the_list_of_results_is(tmp_path):
    (tmp_path / "Results.jsonl.mp4").touch()
    assert find_clips([tmp_path / "Results.jsonl.mp4"], DEFAULT)[0].id == "Results.jsonl-2"
    (tmp_path / "clips.csv").write_text("video,id\nResults.jsonl.mp4,results.JSONL\n")
    with pytest.raises(ValueError, match=r"row 2, column id: .*unique.*'results\.JSONL'"):
        find_clips(tmp_path / "clips.csv", DEFAULT)


@pytest.mark.parametrize(
    ("videos", "error", "message"),
    [
        ("{0}/missing.mp4", FileNotFoundError, "video {0}/missing.mp4 … not exist"),
        ("{0}/missing", FileNotFoundError, "video {0}/missing … not exist"),
        ("{0}/missing.csv", FileNotFoundError, "video {0}/missing.csv … not exist"),
        ("{0}/sub.mp4", IsADirectoryError, "video {0}/sub.mp4 … folder"),
        (["{0}/b.mp4", "{0}/more"], IsADirectoryError, "video {0}/more … folder"),
        (["{0}/b.mp4", "{0}/x.mp4"], FileNotFoundError, "video {0}/x.mp4 … not exist"),
        ([], ValueError, "videos … at least one file … empty"),
        ("{0}/z*", ValueError, "videos … at least one file … {0}/z* … .avi"),
        ("{0}/empty", ValueError, "videos … at least one file … {0}/empty … .avi"),
    ],
)
def test_what_is_not_there(folder, videos, error, message):
    (folder / "empty").mkdir()
    put = folder.as_posix()
    videos = [video.format(put) for video in videos] if isinstance(videos, list) else videos.format(put)
    with pytest.raises(error) as caught:
        find_clips(videos, DEFAULT)
    assert type(caught.value) is error
    assert re.match(make_pattern(message.format(put)), str(caught.value))
    assert "\n" not in str(caught.value)


def test_csv(folder):
    path = folder / "clips.csv"
    rows = 'b.mp4,a fox | a wolf ,"a cat, asleep",,7,13,42,fox\n\nmore/d.mp4,,,ugly,,,,\nb.mp4,,,,0,,0,\n'
    path.write_text("\ufeff" + HEADER + rows, encoding="utf-8")
    one, two, three = find_clips(path, DEFAULT)
    assert one == ClipRequest(
        folder / "b.mp4", "fox", ("a fox", "a wolf"), "a cat, asleep", "blur", 7, 13, 42, f"{path} row 2"
    )
    assert two == ClipRequest(folder / "more/d.mp4", "d", ("a dog",), "a cat", "ugly", 3, 9, None, f"{path} row 4")
    assert three == ClipRequest(folder / "b.mp4", "b", ("a dog",), "a cat", "blur", 0, 9, 0, f"{path} row 5")


def test_jsonl(folder):
    path = folder / "clips.jsonl"
    rows = [
        {"video": str(folder / "a.mov"), "prompts": ["a | b", "c"], "start": 2, "seed": None, "negative_prompt": ""},
        {"id": "Ω-1", "video": "c.MKV", "prompts": "one, with \u2028 inside"},
    ]
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    one, two = find_clips(str(path), DEFAULT)
    assert one == ClipRequest(folder / "a.mov", "a", ("a | b", "c"), "a cat", "", 2, 9, None, f"{path} row 1")
    assert two.prompts == ("one, with \u2028 inside",)
    assert (two.id, two.video, two.origin) == ("Ω-1", folder / "c.MKV", f"{path} row 3")


def test_masks_are_relative_to_the_manifest_too(folder):
    default = ClipRequest(mask=folder / "notes.txt")
    (folder / "more" / "clips.csv").write_text("video,mask\nd.mp4,../a.mov\nd.mp4,\n")
    masks = [request.mask for request in find_clips(folder / "more" / "clips.csv", default)]
    assert masks == [folder / "more" / ".." / "a.mov", folder / "notes.txt"]
    row = {"video": "d.mp4", "mask": str(folder / "b.mp4")}
    (folder / "more" / "clips.jsonl").write_text(json.dumps(row))
    assert find_clips(folder / "more" / "clips.jsonl", default)[0].mask == folder / "b.mp4"


def test_first_frames_are_relative_to_the_manifest_too(folder):
    default = ClipRequest(first_frame=folder / "notes.txt")
    (folder / "more" / "clips.csv").write_text("video,first_frame\nd.mp4,../a.mov\nd.mp4,\n")
    found = [request.first_frame for request in find_clips(folder / "more" / "clips.csv", default)]
    assert found == [folder / "more" / ".." / "a.mov", folder / "notes.txt"]


def test_columns_may_come_in_any_order_and_be_left_out(folder):
    (folder / "clips.csv").write_text("id,video\nx,b.mp4\n")
    assert names(read_manifest(folder / "clips.csv", DEFAULT)) == [("x", "b.mp4")]


def test_given_ids_come_before_made_ones(folder):
    (folder / "clips.csv").write_text("video,id\nb.mp4,\na.mov,b\n")
    assert names(find_clips(folder / "clips.csv", DEFAULT)) == [("b-2", "b.mp4"), ("b", "a.mov")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,start\nb.mp4,1\nb.mp4,x\n", "clips.csv row 3, column start: … integer >= 0, got 'x'"),
        ("video,start\nb.mp4,-1\n", "clips.csv row 2, column start: … integer >= 0, got '-1'"),
        ("video,num_frames\nb.mp4,8.5\n", "clips.csv row 2, column num_frames: … integer >= 0, got '8.5'"),
        ("video,seed\nb.mp4,1_000\n", "clips.csv row 2, column seed: … integer >= 0, got '1_000'"),
        (
            "video,prompts\nb.mp4,a||b\n",
            "clips.csv row 2, column prompts: … none … empty, got ['a', '', 'b']",
        ),
        (
            "video,id\nb.mp4,../up\n",
            "clips.csv row 2, column id: must be a folder name … at most 64, got '../up'",
        ),
        ("video,id\nb.mp4,x\na.mov,X\n", "clips.csv row 3, column id: … unique … 'X' … {path} row 2"),
        (
            "video,prompt\nb.mp4,x\n",
            "clips.csv row 1, column 'prompt': must be one of … prompts",
        ),
        ("video,seed,video\nb.mp4,1,b.mp4\n", "clips.csv row 1, column video: … once, got 2"),
        ("prompts,seed\nx,1\n", "clips.csv row 1: … column video, got prompts, seed"),
        ("", "clips.csv row 1: … column video, got no column"),
        ("video\n", "clips.csv … at least one row"),
        ("video,seed\n,1\n", "clips.csv row 2, column video: … file, got nothing"),
        ("video,prompts\nb.mp4,a, b\n", "clips.csv row 2: … 2 cells, got 3"),
        ('video,prompts\nb.mp4,"a\n', "clips.csv line 2: … CSV … unexpected end"),
    ],
)
def test_mistakes_in_a_csv_name_row_and_column(folder, text, message):
    path = folder / "clips.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=make_pattern(f"{folder}/{message.format(path=path)}")):
        find_clips(path, DEFAULT)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"video": "b.mp4", "start": true}', "row 2, column start: … integer >= 0, got True"),
        ('{"video": "b.mp4", "seed": 2.0}', "row 2, column seed: … integer >= 0, got 2.0"),
        ('{"video": "b.mp4", "prompts": [1]}', "row 2, column prompts: … none … empty, got [1]"),
        ('{"video": "b.mp4", "prompts": " "}', "row 2, column prompts: … none … empty, got ' '"),
        ('{"video": "b.mp4", "source_prompt": 3}', "row 2, column source_prompt: … text, got 3"),
        ('{"video": "b.mp4", "negative_prompt": []}', "row 2, column negative_prompt: … text, got []"),
        ('{"video": 3}', "row 2, column video: … text, got 3"),
        ('{"video": null}', "row 2, column video: … file, got nothing"),
        ('{"seed": 3}', "row 2: … column video, got seed"),
        ('["b.mp4"]', 'row 2: … JSON object, got ["b.mp4"]'),
        ('{"video":' * 20_000, "row 2: … JSON object … deep"),
        ('{"video": ' + "9" * 5000 + "}", "row 2: … JSON object … digits"),
        ('{"video": "b.mp4", "start": ' + "[" * 400 + "]" * 400 + "}", "row 2, column start: … integer >= 0, got [["),
        ('{"video": "b.mp4", "start": 1e400}', "row 2, column start: … integer >= 0, got inf"),
        ('{"video": "b.mp4", "promptz": "x"}', "row 2, column 'promptz': must be one of … did you mean prompts?"),
        ('{"video": "b.mp4", "id": "\\ud83d"}', "row 2, column id: must be a folder name"),
        ('{"video": "b\\u0000.mp4"}', "row 2, column video: … not exist"),
        ('{"video": "\\ud83d.mp4"}', "row 2, column video: … not exist"),
        ('{"video": "~no such user/b.mp4"}', "row 2, column video: … ~no such user/b.mp4 does not exist"),
        ('{"video": "b.mp4"', "row 2: … JSON object … character 17"),
    ],
)
def test_mistakes_in_a_jsonl_name_row_and_column(folder, line, message):
    path = folder / "clips.jsonl"
    path.write_text('{"video": "b.mp4"}\n' + line + "\n")
    with pytest.raises((ValueError, OSError), match=make_pattern(f"{path} {message}")) as caught:
        find_clips(path, DEFAULT)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("column", ["video", "mask", "first_frame"])
@pytest.mark.parametrize(
    ("name", "error", "rest"),
    [("x.mp4", FileNotFoundError, "not exist"), ("more", IsADirectoryError, "folder")],
)
def test_files_missing_from_a_manifest_name_the_row(folder, column, name, error, rest):
    path = folder / "clips.csv"
    row = {"video": "b.mp4", "mask": "b.mp4", "first_frame": "b.mp4", column: name}
    path.write_text(f"video,mask,first_frame\nb.mp4,,\n{','.join(row.values())}\n")
    with pytest.raises(error) as caught:
        find_clips(path, DEFAULT)
    assert type(caught.value) is error
    wanted = make_pattern(f"{path} row 3, column {column}: … {folder / name} … {rest}")
    assert re.match(wanted, str(caught.value))


def test_half_an_emoji_is_kept_for_its_clip_to_be_skipped(folder):
    (folder / "clips.jsonl").write_text('{"video": "b.mp4", "prompts": ["\\ud83d"]}\n{"video": "a.mov"}\n')
    one, two = find_clips(folder / "clips.jsonl", DEFAULT)
    assert (one.prompts, two.prompts) == (("\ud83d",), ("a dog",))


def test_ids_of_many_clips_of_one_film_take_linear_time(folder):
    def count(rows):
        cells = "".join(f"{('b.mp4', 'a.mov', 'A.mp4')[i % 3]},{i}\n" for i in range(rows))
        (folder / "clips.csv").write_text(f"video,start\n{cells}")
        steps = 0

        def look(*_):
            nonlocal steps
            steps += 1

        before = sys.getprofile()
        sys.setprofile(look)
        try:
            requests = find_clips(folder / "clips.csv", DEFAULT)
        finally:
            sys.setprofile(before)
        assert len({request.id.casefold() for request in requests}) == rows
        return steps

    count(30)
    assert count(1200) < 5 * count(300)  # calls of functions, which do not depend on how busy the machine is


def test_made_ids_count_on_around_given_ones(folder):
    (folder / "clips.csv").write_text("video,id\nb.mp4,\nb.mp4,B-2\nb.mp4,\nb.mp4,b-4\nb.mp4,\n")
    assert [request.id for request in find_clips(folder / "clips.csv", DEFAULT)] == ["b", "B-2", "b-3", "b-4", "b-5"]


def test_a_manifest_must_be_utf8(folder):
    (folder / "clips.csv").write_bytes("video,prompts\nb.mp4,été\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"clips\.csv .*UTF-8.* at byte 20"):
        find_clips(folder / "clips.csv", DEFAULT)


def test_a_row_may_name_a_folder_of_frames_and_its_rate(folder):
    for name in ("frames", "marks"):
        (folder / name).mkdir()
        for number in range(3):
            (folder / name / f"{number}.png").touch()
    path = folder / "list.csv"
    path.write_text("video,mask,fps\nframes,marks,23.976\nframes,,\n")
    first, second = find_clips(path, ClipRequest(fps=12))
    assert (first.video, first.mask, first.fps) == (folder / "frames", folder / "marks", 23.976)
    assert (second.mask, second.fps) == (None, 12)
    for value in ("0", "-8", "nan", "inf", "fast", "1e9"):
        path.write_text(f"video,fps\nframes,{value}\n")
        with pytest.raises(ValueError, match=rf"row 2, column fps: .* got '{value}'$"):
            find_clips(path, ClipRequest())


def test_somebody_elses_table_is_read_by_a_mapping_and_what_else_it_says_is_carried_along(folder):
    rows = [{"name": "a", "kind": "mov", "what": "a [red] dog", "score": 3, "tags": ["x"]}]
    (folder / "more" / "edits.json").write_text(json.dumps(rows))
    columns = {"video": "{name}.{kind}", "prompts": "what"}
    (request,) = find_clips(folder / "more" / "edits.json", DEFAULT, columns, folder)
    assert (request.video, request.prompts, request.source_prompt) == (folder / "a.mov", ("a [red] dog",), "a cat")
    assert request.rows == (rows[0],)
    assert find_clips(folder / "b.mp4", DEFAULT)[0].rows == ()


def test_a_mapping_that_will_not_do_is_named(folder):
    (folder / "edits.json").write_text('[{"name": "b.mp4", "what": 3}]')
    for columns, said in (
        ({"vidoe": "name"}, "columns: .*did you mean video"),
        ({"video": "nick"}, "edits.json entry 1: must have the column nick "),
        (
            {"video": "name", "prompts": "what"},
            r"edits.json entry 1, column what \(prompts\): must be prompts, .* got 3",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            find_clips(folder / "edits.json", DEFAULT, columns)
    with pytest.raises(NotADirectoryError, match="root: "):
        find_clips(folder / "edits.json", DEFAULT, {"video": "name"}, folder / "nowhere")
    for name, options in (("columns", {"columns": {"video": "name"}}), ("root", {"root": folder})):
        with pytest.raises(ValueError, match=f"^{name}: must be unset for videos that are no table"):
            find_clips(folder / "b.mp4", DEFAULT, **options)


def test_requests_in_a_list_stay_as_they_are(folder):
    made = ClipRequest(folder / "b.mp4", prompts=("a cat",), seed=3)
    first, second = find_clips([made, folder / "b.mp4"], DEFAULT)
    assert (first.prompts, first.seed, first.id) == (("a cat",), 3, "b")
    assert (second.prompts, second.id) == (("a dog",), "b-2")
