from __future__ import annotations

import json

import pytest

from ddim_lightning.data.examples import find_captioned, find_pairs


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "b.mov", "deep/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not looked into")
    return tmp_path


def clips(examples, folder):
    return [(str(one.clip.video.relative_to(folder)), one.clip.prompt, one.split) for one in examples]


def test_a_folder_has_a_text_beside_each_clip(folder):
    (folder / "a.txt").write_text("a dog\nruns\n", encoding="utf-8-sig")
    with pytest.raises(ValueError, match=r"^videos: .* b\.mov$"):
        find_captioned(folder)
    assert clips(find_captioned(folder, prompt="a clip"), folder) == [
        ("a.mp4", "a dog runs", None),
        ("b.mov", "a clip", None),
    ]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_may_have_the_table_of_hugging_face(folder, name):
    rows = [{"file_name": "deep/c.mp4", "text": "a cat"}, {"file_name": "a.mp4", "text": "a dog"}]
    lines = ["file_name,text", *(",".join(row.values()) for row in rows)]
    (folder / name).write_text("\n".join(lines if name.endswith("csv") else map(json.dumps, rows)))
    assert clips(find_captioned(folder), folder) == [("deep/c.mp4", "a cat", None), ("a.mp4", "a dog", None)]
    (folder / name).write_text("file_name,text,caption\na.mp4,x,y\n")
    if name.endswith("csv"):
        with pytest.raises(ValueError, match=r"^columns: .*text and caption"):
            find_captioned(folder)
        mapped = find_captioned(folder, {"video": "file_name", "prompt": "caption"})
        assert clips(mapped, folder) == [("a.mp4", "y", None)]


def test_a_table_names_captions_and_splits(folder):
    (folder / "t.csv").write_text("video,prompt,split\na.mp4,x,train\nb.mov,y,Validation\ndeep/c.mp4,z,test\n")
    assert clips(find_captioned(folder / "t.csv"), folder) == [("a.mp4", "x", "train"), ("b.mov", "y", "val")]
    (folder / "t.csv").write_text("video,prompt,split\na.mp4,x,dev\n")
    with pytest.raises(ValueError, match=r"t\.csv row 2, column split: .*got 'dev'"):
        find_captioned(folder / "t.csv")


def test_pairs_have_a_prompt_or_an_instruction(folder):
    table = folder / "t.csv"
    table.write_text("source_video,target_video,target_prompt,instruction\na.mp4,b.mov,x,\na.mp4,deep/c.mp4,,y\n")
    assert [(one.source.video.name, one.clip.prompt) for one in find_pairs(table)] == [("a.mp4", "x"), ("a.mp4", "y")]
    table.write_text("source_video,target_video,target_prompt,instruction\na.mp4,b.mov,x,y\n")
    with pytest.raises(ValueError, match=r"row 2: must have one of target_prompt and instruction, got both"):
        find_pairs(table)
    table.write_text("source_video,target_video,source_prompt\na.mp4,b.mov,x\n")
    with pytest.raises(ValueError, match=r"row 2: must have one of target_prompt and instruction, got neither"):
        find_pairs(table)
    with pytest.raises(ValueError, match=r"^columns: must map one of target_prompt and instruction"):
        find_pairs(table, {"source_video": "source_video", "target_video": "target_video"})


def test_all_that_is_missing_is_told_in_one_line(folder):
    table = folder / "t.csv"
    table.write_text("source_video,target_video,instruction\na.mp4,b.mov,x\na.mp4,gone.mp4,y\nlost.mp4,b.mov,z\n")
    with pytest.raises(FileNotFoundError, match=r"row 3: .*gone\.mp4 does not exist \(nor do 1 others\)"):
        find_pairs(table)
    with pytest.raises(NotADirectoryError, match=r"^root: "):
        find_pairs(table, root=folder / "nowhere")
    (folder / "deep" / "b.mov").touch()
    table.write_text("source_video,target_video,instruction\nc.mp4,b.mov,x\n")
    assert find_pairs(table, root=folder / "deep")[0].videos == (folder / "deep/c.mp4", folder / "deep/b.mov")


@pytest.mark.parametrize("find", [find_captioned, find_pairs])
def test_what_is_no_table_is_refused(folder, find):
    with pytest.raises(ValueError, match=r"a\.mp4: must be a table"):
        find(folder / "a.mp4")
    with pytest.raises(FileNotFoundError):
        find(folder / "gone.csv")
    (folder / "t.csv").write_text("file,text\na.mp4,x\n")
    with pytest.raises(ValueError, match=r"row 1: must have the column (video|source_video) "):
        find(folder / "t.csv")
