"""What the evaluations of public benchmarks find: names, frames, sizes; nothing is written twice or over anything."""

from __future__ import annotations

import csv

import numpy as np
from PIL import Image

from ddim_lightning.data.benchmark import read_benchmark
from ddim_lightning.output.evaluation import write_evaluation
from tests.benchmark_folders import (
    draw,
    draw_masks,
    write_editboard,
    write_five,
    write_ivebench,
    write_results,
    write_tgve,
)


def run(name, write, tmp_path):
    """A made-up run of a benchmark: the benchmark, the output folder, the records, and what its evaluation finds."""
    benchmark = read_benchmark(name, write(tmp_path / name))
    output = tmp_path / "out"
    records = write_results(benchmark, output)
    assert write_evaluation(benchmark, output, records) == []
    return benchmark, output, records, output / "evaluation"


def list_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_editboard_has_edits_sources_and_masks_of_as_many_frames_and_a_script(tmp_path):
    _, _, _, found = run("editboard", lambda root: write_editboard(root, count=5), tmp_path)
    with (found / "script.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["target_prompt"] for row in rows] == ["a bear in autumn", "a panda, on rocks"]
    assert list(rows[0])[:2] == ["original_video_path", "edited_video_path"] and "table" not in rows[0]
    for column in ("original_video_path", "edited_video_path", "semantic_mask_path"):
        files = sorted((found / rows[1][column]).iterdir())
        assert [file.name for file in files] == [f"frame_{k:05d}.png" for k in range(5)]
        assert Image.open(files[0]).size == (48, 32)
    source = np.asarray(Image.open(found / "sample/bear/frame_00003.png")).astype(int)
    assert abs(source - draw("bear", 5)[3]).mean() < 5  # as far as JPEG keeps it
    mask = np.asarray(Image.open(found / "sample/bear_mask/frame_00003.png"))
    assert np.array_equal(mask, draw_masks(5)[3] * 255)


def test_an_image_is_laid_out_as_the_mask_of_every_frame(tmp_path):
    benchmark = read_benchmark("editboard", write_editboard(tmp_path / "editboard", count=5))
    for file in sorted((tmp_path / "editboard/sample/bear_mask").iterdir())[1:]:
        file.unlink()
    assert write_evaluation(benchmark, tmp_path / "out", write_results(benchmark, tmp_path / "out")) == []
    found = sorted((tmp_path / "out/evaluation/sample/bear_mask").iterdir())
    assert len(found) == 5 and len({file.read_bytes() for file in found}) == 1


def test_tgve_has_jpegs_of_the_size_of_the_source(tmp_path):
    _, _, _, found = run("tgve", lambda root: write_tgve(root, count=5), tmp_path)
    files = list_files(found)
    assert len(files) == 3 * 4 * 5
    assert files[0] == "DAVIS_480p/gold-fish/background/00000.jpg"
    assert Image.open(found / files[0]).size == (48, 32)


def test_ivebench_has_sources_and_targets_under_one_name(tmp_path):
    _, _, _, found = run("ivebench", lambda root: write_ivebench(root, count=5), tmp_path)
    assert list_files(found) == [
        f"{of}/{name}/{k:05d}.png" for of in ("source", "target") for name in ("dance", "river") for k in range(5)
    ]
    assert Image.open(found / "target/dance/00000.png").size == (24, 16)  # that of the edit


def test_what_is_current_stays_and_a_new_edit_takes_its_place(tmp_path):
    benchmark, output, records, found = run("five", lambda root: write_five(root, count=5), tmp_path)
    place = found / "0003_blackswan" / "6_a river.mp4"
    before = place.stat().st_mtime_ns
    write_evaluation(benchmark, output, records)
    assert place.stat().st_mtime_ns == before
    (output / "0003_blackswan" / "edit-01.mp4").write_bytes(b"new")
    write_evaluation(benchmark, output, records)
    assert place.read_bytes() == b"new"


def test_clips_that_are_not_done_are_left_out(tmp_path):
    benchmark = read_benchmark("five", write_five(tmp_path / "five", count=5))
    records = write_results(benchmark, tmp_path / "out")
    write_evaluation(benchmark, tmp_path / "out", {"0001_bus": records["0001_bus"]})
    assert {path.parent.name for path in (tmp_path / "out/evaluation").rglob("*.mp4")} == {"0001_bus"}


def test_of_two_edits_with_one_name_the_first_stays_and_that_is_told(tmp_path):
    root = write_five(tmp_path / "five", count=5)
    table = root / "edit_prompt" / "edit6_FiVE.json"
    (root / "edit_prompt" / "edit6_again_FiVE.json").write_text(table.read_text())
    benchmark = read_benchmark("five", root, ["edit6_FiVE", "edit6_again_FiVE"])
    output = tmp_path / "out"
    records = write_results(benchmark, output)
    (note,) = write_evaluation(benchmark, output, records)
    assert "edit6_again_FiVE.json entry 1" in note and "0003_blackswan/6_a river" in note
    place = output / "evaluation/0003_blackswan/6_a river.mp4"
    assert place.read_bytes() == (output / "0003_blackswan/edit-00.mp4").read_bytes()


def test_a_folder_of_other_frames_is_not_mixed_with_ours_and_costs_none_of_the_others(tmp_path):
    benchmark, output, records, found = run("tgve", lambda root: write_tgve(root, count=5), tmp_path)
    (found / "youtube_480p/salsa/style/00099.jpg").touch()
    (found / "youtube_480p/volleyball/style/00000.jpg").unlink()
    (note,) = write_evaluation(benchmark, output, records)
    assert "row 6: not laid out: " in note and note.endswith("alone, got 00099.jpg; move it")
    assert (found / "youtube_480p/volleyball/style/00000.jpg").is_file()
    benchmark, output, records, found = run("editboard", lambda root: write_editboard(root, count=5), tmp_path)
    (found / "sample/bear_autumn/frame_00099.png").touch()
    write_evaluation(benchmark, output, records)
    assert "panda" in (found / "script.csv").read_text() and "autumn" not in (found / "script.csv").read_text()
