"""Which video is compared with which."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from ddim_lightning.output.pairs import find_pairs
from tests.clip_results import make_result, write_run
from tests.output.pictures import make_frames, write_frames


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a clip with a reconstruction, two edits and a trajectory, and of one with none of them."""
    trajectory = {"levels": torch.ones(3, 1, 2, 4, 4, 4)}
    alone = make_result("alone", reconstruction=None, edits=[])
    return write_run(tmp_path_factory.mktemp("runs") / "run", make_result("cat", trajectory=trajectory), alone)


def describe(pairs):
    return {pair.name: (pair.reference, pair.video, pair.prompt) for pair in pairs.found}


def test_folders_are_paired_by_name_and_the_rest_is_listed(tmp_path):
    for name in ("A/cat", "A/dog", "A/cow", "B/cat", "B/dog", "B/pig"):
        write_frames(tmp_path / name, make_frames(0, f=1))
    pairs = find_pairs(str(tmp_path / "A"), str(tmp_path / "B"))
    assert describe(pairs) == {
        name: (tmp_path / "A" / name, tmp_path / "B" / name, None) for name in ("cat", "dog")
    }  # fmt: skip
    assert (pairs.without_reference, pairs.without_video) == (["pig"], ["cow"])


def test_two_single_videos_are_a_pair_whatever_their_names(tmp_path):
    one, other = (write_frames(tmp_path / name, make_frames(0, f=1)) for name in ("one", "other"))
    assert describe(find_pairs(str(one), str(other))) == {"other": (one, other, None)}
    pairs = find_pairs(str(tmp_path), str(other))  # a folder's name counts
    assert list(describe(pairs)) == ["other"] and pairs.without_video == ["one"]


def test_a_run_is_its_sources_on_one_side_and_what_it_made_on_the_other(run, tmp_path):
    cat = run / "cat"
    made = {
        "cat/reconstruction": (cat / "source.mp4", cat / "reconstruction.mp4", "a red circle"),
        "cat/edit-00": (cat / "source.mp4", cat / "edit-00.mp4", "a green square"),
        "cat/edit-01": (cat / "source.mp4", cat / "edit-01.mp4", "ein grüner Kreis"),
    }
    pairs = find_pairs(str(run), str(run))
    assert describe(pairs) == made  # and no trajectory with itself
    assert pairs.without_video == ["alone"] and not any(pair.latents for pair in pairs.found)
    source = write_frames(tmp_path / "sources" / "cat", make_frames(0, f=1))
    for reference in (source, source.parent):
        assert describe(find_pairs(str(reference), str(run))) == {
            name: (source, *rest) for name, (_, *rest) in made.items()
        }
    assert describe(find_pairs(str(run), str(source.parent))) == {"cat": (cat / "source.mp4", source, None)}


def test_trajectories_of_two_runs_are_compared(run, tmp_path):
    trajectory = {"levels": torch.zeros(3, 1, 2, 4, 4, 4)}
    other = write_run(tmp_path / "other", make_result("cat", trajectory=trajectory, reconstruction=None, edits=[]))
    pairs = find_pairs(str(run), str(other))
    (pair,) = pairs.found
    assert pair.name == "cat/trajectory" and pair.video is None
    assert pair.latents == (run / "cat" / "trajectory.safetensors", other / "cat" / "trajectory.safetensors")


def test_latents_lie_beside_videos_under_their_names(tmp_path):
    for side in "AB":
        write_frames(tmp_path / side / "cat", make_frames(0, f=1))
        save_file({"latents": torch.ones(2)}, tmp_path / side / "cat.safetensors")
    (pair,) = find_pairs(str(tmp_path / "A"), str(tmp_path / "B")).found
    assert pair.latents == (tmp_path / "A" / "cat.safetensors", tmp_path / "B" / "cat.safetensors")


def test_columns_of_a_manifest_that_are_not_read_are_told(tmp_path):
    cat = write_frames(tmp_path / "cat", make_frames(0))
    table = tmp_path / "clips.jsonl"
    table.write_text(json.dumps({"video": "cat", "prompts": "a dog", "start": 1, "num_frames": 5}) + "\n")
    with pytest.warns(UserWarning, match="clips.jsonl: its columns start, num_frames are not read here"):
        assert describe(find_pairs(str(cat), str(table))) == {"cat": (cat, cat, "a dog")}


def test_masks_are_found_by_name_or_hold_for_all(tmp_path):
    for name in ("A/cat", "A/dog", "B/cat", "B/dog", "masks/cat", "one"):
        write_frames(tmp_path / name, make_frames(0, f=1))
    sides = str(tmp_path / "A"), str(tmp_path / "B")
    by_name = {pair.name: pair.mask for pair in find_pairs(*sides, str(tmp_path / "masks")).found}
    assert by_name == {"cat": tmp_path / "masks" / "cat", "dog": None}
    for mask in (tmp_path / "one", tmp_path / "one" / "00000.png"):
        assert {pair.mask for pair in find_pairs(*sides, str(mask)).found} == {mask}
    with pytest.raises(ValueError, match=r"masks: .* name of each clip, cat, dog, got A, B, masks, one"):
        find_pairs(*sides, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="masks: "):
        find_pairs(*sides, str(tmp_path / "gone"))


def test_prompts_come_from_a_table_by_name_and_position(run, tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text("id,prompt\ncat,a lion\ncat,a tiger\nother,nothing\n", encoding="utf-8")
    prompts = {pair.name: pair.prompt for pair in find_pairs(str(run), str(run), prompts=str(table)).found}
    assert prompts == {"cat/reconstruction": "a red circle", "cat/edit-00": "a lion", "cat/edit-01": "a tiger"}
    rows = tmp_path / "prompts.jsonl"
    rows.write_text(json.dumps({"video": "clips/cat.mp4", "prompts": ["a [lion]", "x|y"]}), encoding="utf-8")
    prompts = {pair.name: pair.prompt for pair in find_pairs(str(run), str(run), prompts=str(rows)).found}
    assert (prompts["cat/edit-00"], prompts["cat/edit-01"]) == ("a [lion]", "x|y")
    rows.write_text(json.dumps({"id": "cat/edit-01", "prompt": "a lynx"}), encoding="utf-8")
    prompts = {pair.name: pair.prompt for pair in find_pairs(str(run), str(run), prompts=str(rows)).found}
    assert (prompts["cat/edit-00"], prompts["cat/edit-01"]) == ("a green square", "a lynx")
    table.write_text("id,text\ncat,a lion\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"prompts: .* prompt or prompts, got id, text"):
        find_pairs(str(run), str(run), prompts=str(table))


def test_a_file_of_a_run_that_is_gone_is_told(tmp_path):
    run = write_run(tmp_path / "run", make_result("cat", reconstruction=None))
    (run / "cat" / "edit-00.mp4").unlink()
    with pytest.warns(UserWarning, match="edit-00.mp4 of cat is not there"):
        assert list(describe(find_pairs(str(run), str(run)))) == ["cat/edit-01"]


def test_a_record_leads_to_no_file_outside_the_folder_of_its_clip(run, tmp_path):
    record = json.loads((run / "cat" / "result.json").read_text("utf-8"))
    record["files"] |= {"reconstruction": "../../secret.mp4", "edits": ["/etc/passwd"]}
    (tmp_path / "secret.mp4").touch()
    (tmp_path / "run" / "cat").mkdir(parents=True)
    (tmp_path / "run" / "cat" / "source.mp4").touch()
    (tmp_path / "run" / "results.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="/etc/passwd of cat is not there"):
        assert find_pairs(str(tmp_path / "run"), str(tmp_path / "run")).found == []


def test_names_count_as_they_stand_and_a_clip_of_a_run_has_that_of_its_file_too(tmp_path):
    long = "x" * 60
    for name in ("my cat", "b[1]", f"{long} one"):
        for side in "AB":
            write_frames(tmp_path / side / name, make_frames(0, f=1))
    (tmp_path / "B" / f"{long} one").rename(tmp_path / "B" / f"{long} two")
    write_frames(tmp_path / "masks" / "my cat", make_frames(0, f=1))
    table = tmp_path / "prompts.csv"
    table.write_text("video,prompt\nmy cat,a lion\n", encoding="utf-8")
    sides = tmp_path / "A", tmp_path / "B"
    pairs = find_pairs(*map(str, sides), masks=str(tmp_path / "masks"), prompts=str(table))
    assert list(describe(pairs)) == ["b[1]", "my cat"] and pairs.without_reference == [f"{long} two"]
    assert [(pair.mask, pair.prompt) for pair in pairs.found] == [
        (None, None), (tmp_path / "masks" / "my cat", "a lion")
    ]  # fmt: skip
    result = make_result("my_cat", reconstruction=None)
    run = write_run(tmp_path / "run", replace(result, clip=replace(result.clip, source="clips/my cat.mp4")))
    edits, *_ = find_pairs(str(sides[0]), str(run), str(tmp_path / "masks"), str(table)).found
    assert (edits.name, edits.reference) == ("my_cat/edit-00", sides[0] / "my cat")
    assert (edits.mask, edits.prompt) == (tmp_path / "masks" / "my cat", "a lion")
    pairs = find_pairs(str(run), str(sides[1]))
    assert list(describe(pairs)) == ["my cat"] and not pairs.without_video
