"""A prompt is taken as it is, on any command line and in any config."""

from __future__ import annotations

import json

import pytest
import yaml

from ddim_lightning.cli.main import main
from ddim_lightning.cli.parser import read_options
from ddim_lightning.writer import read_results
from tests.cli.test_commands import write_clip

TEXTS = [
    *(
        "style: a circle",
        "#1 car",
        "null",
        "~",
        "- a cat",
        "-",
        "--",
        "-x",
        "--a cat",
        "[a]",
        "{a}",
        '{"a": 1}',
        "@file",
    ),
    *("1", "1e3", "2020-01-01", "true", "!tag", "&a", "*a", "%TAG", "|", ">", "=", "a=b", "a # b", "${x}", "\\n"),
    *(
        '"quoted"',
        "'quoted'",
        '"',
        " spaces ",
        "two\nlines",
        "a\u2028b",
        "😀 東京",
        "\x1b[31m",
        "../edit.yaml",
        "x" * 2000,
    ),
]


SOME = [
    "style: a circle",
    "#1 car",
    "null",
    "- a cat",
    "--",
    "[a]",
    '{"a": 1}',
    "1",
    "!tag",
    '"quoted"',
    "two\nlines",
    "😀",
]


def quote(text):
    """The text as YAML in quotes."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**9).strip()


@pytest.mark.parametrize(("joined", "texts"), [(False, TEXTS), (True, SOME)])
def test_edit_takes_every_prompt_as_it_is(joined, texts):
    for text in texts:

        def spell(flag, text=text):
            return [f"{flag}={text}"] if joined else [flag, text]

        words = [
            *spell("--prompt"),
            "clip.mp4",
            *spell("--source-prompt"),
            *spell("--negative_prompt"),
            *spell("--prompt"),
        ]
        groups = read_options("edit", [*words, *spell("--inversion-prompt"), "--output", "out"])
        assert groups["video"].prompt == [text, text]
        assert groups["frames"].source_prompt == groups["frames"].negative_prompt == text
        assert groups["method"].inversion_prompt == (None if text == "null" else text)


def test_a_config_of_edit_takes_quoted_texts_as_they_are(tmp_path):
    for text in SOME:
        names = ("source_prompt", "negative_prompt", "inversion_prompt")
        lines = [
            "video: clip.mp4",
            "output: out",
            f"prompt: [{quote(text)}]",
            *(f"{name}: {quote(text)}" for name in names),
        ]
        (tmp_path / "edit.yaml").write_text("\n".join(lines), encoding="utf-8")
        groups = read_options("edit", ["--config", str(tmp_path / "edit.yaml")])
        assert groups["video"].prompt == [text]
        assert groups["frames"].source_prompt == groups["frames"].negative_prompt == text
        assert groups["method"].inversion_prompt == text
    (tmp_path / "edit.yaml").write_text(
        "{video: v.mp4, output: out, prompt: [a], source_prompt: null, inversion_prompt: ~}"
    )
    groups = read_options("edit", ["--config", str(tmp_path / "edit.yaml")])
    assert (groups["frames"].source_prompt, groups["method"].inversion_prompt) == (None, None)


def print_config(capsys, *words):
    assert main(["predict", *words, "--print_config"]) == 0, capsys.readouterr().err
    config = yaml.safe_load(capsys.readouterr().out)
    return config["data"]["init_args"], config["model"]["init_args"]


def test_predict_takes_every_prompt_as_it_is(capsys):
    for text in SOME:
        words = [
            "--data.prompts",
            text,
            "--data.prompts+",
            text,
            f"--data.prompts+={text}",
            "--data.source-prompt",
            text,
        ]
        data, module = print_config(capsys, *words, "--data.negative_prompt", text, "--model.inversion_prompt", text)
        assert data["prompts"] == [text] * 3
        assert data["source_prompt"] == data["negative_prompt"] == text
        assert module["inversion_prompt"] == (None if text == "null" else text)


def test_a_config_of_predict_takes_quoted_texts_as_they_are(tmp_path, capsys):
    for text in SOME:
        options = ", ".join(f"{name}: {quote(text)}" for name in ("prompts", "source_prompt", "negative_prompt"))
        config = f"data: {{init_args: {{{options}}}}}\nmodel: {{init_args: {{inversion_prompt: {quote(text)}}}}}\n"
        (tmp_path / "mine.yaml").write_text(config, encoding="utf-8")
        data, module = print_config(capsys, "--config", str(tmp_path / "mine.yaml"))
        assert {data["prompts"], data["source_prompt"], data["negative_prompt"], module["inversion_prompt"]} == {text}


def test_what_print_config_prints_says_the_same_again(tmp_path, capsys):
    words = [word for text in SOME for word in ("--data.prompts+", text)]
    assert main(["predict", *words, "--data.source_prompt", "null", "--print_config"]) == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    data, _ = print_config(capsys, "--config", str(tmp_path / "again.yaml"))
    assert (data["prompts"], data["source_prompt"]) == (SOME, "null")


def test_a_list_in_json_is_several_prompts(capsys):
    data, _ = print_config(capsys, "--data.prompts", json.dumps(["null", "a: b"]))
    assert data["prompts"] == ["null", "a: b"]


def test_texts_come_through_to_the_results(tiny_model, tmp_path):
    write_clip(tmp_path / "clip.mp4", 0)
    words = ["--data.videos", str(tmp_path / "clip.mp4"), "--data.height=16", "--data.width=24", "--data.num_workers=0"]
    words += ["--data.prompts", "null", "--data.prompts+", "- a red circle", "--data.source_prompt", "#1 square"]
    words += ["--model.model", str(tiny_model), "--model.schedule.num_inference_steps=1", "--trainer.accelerator=cpu"]
    assert main(["predict", *words, "--writer.output_dir", str(tmp_path / "out")]) == 0
    (record,) = read_results(tmp_path / "out")
    assert record["prompts"] == ["null", "- a red circle"]
    assert record["settings"]["source_prompt"] == "#1 square"


def test_a_message_shows_the_text_and_not_what_stood_for_it(capsys):
    assert main(["edit", "clip.mp4", "--promt=style: a circle", "--source_prompt=#1", "--output", "out"]) == 2
    told = capsys.readouterr().err
    assert "did you mean --prompt?" in told
    assert "\ue000" not in told


def test_a_seed_without_effect_is_refused(capsys):
    assert main(["predict", "--seed_everything=3", "--data.videos=clip.mp4", "--writer.output_dir=out"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: seed_everything: must be unset, got 3")
