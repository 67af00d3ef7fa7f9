"""A model is named by a word, a folder or a hub id, and a `Source` says the rest of where its weights come from.

Nothing heavy is imported here, so that the command line can say what it takes before torch is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ddim_lightning.models.contents import TRANSFORMER_MARK, describe_file, describe_folder, read_names

BUNDLED = Path(__file__).parents[1] / "assets" / "tiny"
"""Folder of the bundled model."""
BUNDLED_ADAPTER = "tiny_edit"
"""Name of the adapter of the bundled model, which lies in its folder."""

LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""What diffusers and peft call the file of a LoRA in its folder."""


@dataclass(frozen=True)
class Source:
    """The `Source` says where the weights of a model come from, beside its name; the names are those of diffusers.

    An option that has no effect on the model that is named is refused. A token of the hub is no option, so that it is
    written nowhere: the command line takes it from ``HF_TOKEN``, Python also as `from_pretrained`'s ``token``.

    Args:
        revision: Branch, tag or commit of the model's repository on the hub.
        variant: Variant of the model's weights that is loaded, ``fp16`` for example; all of its parts must have it.
            Without one the plain weights are taken, or the only variant where there are no plain ones.
        cache_dir: Folder that keeps what comes from the hub, instead of the hub's own.
        local_files_only: Take from the hub only what is on this machine already.
        subfolder: Where the pipeline folder lies inside the model's folder or repository.
        transformer: Another transformer than the pipeline's own: a folder with its ``config.json``, a pipeline folder
            or a hub id of either, or a safetensors file in diffusers' names that fits the pipeline's config.

    Raises:
        ValueError: A subfolder that lies elsewhere.
    """

    revision: str | None = None
    variant: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    subfolder: str | None = None
    transformer: str | None = None

    def __post_init__(self) -> None:
        if self.subfolder is not None:
            path = PurePosixPath(self.subfolder)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise ValueError(f"subfolder: must be a folder inside the model's, got {self.subfolder!r}")


def resolve_model(model: str) -> Path | str:
    """Tell a folder from a hub id.

    Args:
        model: ``tiny`` for the bundled model, a folder, or a hub id ``owner/name``.

    Returns:
        The folder, or the hub id when no folder of that name is here.

    Raises:
        FileNotFoundError: A path that does not exist.
        NotADirectoryError: A file.
    """
    path = _resolve(model)
    if path is None:
        raise FileNotFoundError(f"model: no folder {model!r}: give 'tiny', a pipeline folder or a hub id 'owner/name'")
    if isinstance(path, Path) and not path.is_dir():
        raise NotADirectoryError(
            f"model: must be a pipeline folder or a hub id, got the file {model}{describe_file(path)}"
        )
    return path


def resolve_transformer(transformer: str) -> Path | str:
    """Tell where another transformer lies: a folder with its ``config.json``, a safetensors file, or a hub id.

    Args:
        transformer: See `Source`.

    Raises:
        OSError: Nothing of that name, or a folder without a transformer.
        ValueError: A file that holds something else.
    """
    path = _resolve(transformer)
    if path is None:
        raise FileNotFoundError(
            f"transformer: no folder or file {transformer!r}: give a folder, a safetensors file or a hub id"
        )
    if isinstance(path, str):
        return path
    if path.is_dir():
        return find_transformer(path, transformer)
    if path.suffix != ".safetensors" or TRANSFORMER_MARK not in (names := read_names(path)):
        rule = "a file must hold a CogVideoX transformer in diffusers' names, as safetensors"
        raise ValueError(f"transformer: {rule}, got {transformer}{describe_file(path)}")
    if any(".lora_" in name for name in names):
        raise ValueError(f"transformer: {transformer} holds an adapter beside its weights; merge it and save it again")
    return path


def find_transformer(folder: Path, name: str) -> Path:
    """Find the folder of a transformer: this one, or ``transformer`` inside a pipeline folder."""
    for place in (folder / "transformer", folder):
        if (place / "config.json").is_file():
            return place
    raise FileNotFoundError(
        f"transformer: {name} must hold config.json or transformer/config.json; {describe_folder(folder)}"
    )


def check_source(model: Path | str, transformer: Path | str | None, source: Source, token: str | None) -> None:
    """Raise a ValueError for an option that has no effect on what is named.

    Args:
        model: What `resolve_model` returns.
        transformer: What `resolve_transformer` returns, or ``None``.
        source: The options.
        token: Of the hub; its value is in no message.
    """
    if source.revision is not None and isinstance(model, Path):
        raise ValueError(f"revision: must be unset for a model in a folder, got {source.revision!r}")
    if isinstance(model, str) or isinstance(transformer, str):
        return
    for name in ("cache_dir", "local_files_only"):
        if got := getattr(source, name):
            raise ValueError(f"{name}: must be unset where nothing comes from the hub, got {got!r}")
    if token is not None:
        raise ValueError("token: must be unset where nothing comes from the hub, got one")


def find_lora(file: str) -> Path:
    """Find the safetensors file of a LoRA.

    Args:
        file: The file itself, or the folder that `save_lora_weights` or peft's ``save_pretrained`` wrote it into; or
            ``tiny_edit``, the adapter of the bundled model, where nothing lies under that name.

    Raises:
        OSError: Nothing of that name, or a folder without such a file.
    """
    path = Path(file).expanduser()
    if file == BUNDLED_ADAPTER and not path.exists():
        return BUNDLED / f"{BUNDLED_ADAPTER}.safetensors"
    if path.is_dir():
        for name in LORA_FILES:
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"lora: a folder must hold {' or '.join(LORA_FILES)}, got {file!r}")
    if not path.is_file():
        raise FileNotFoundError(f"lora: must be a safetensors file or a folder with one, got {file!r}")
    return path


def _resolve(name: str) -> Path | str | None:
    """Return the path of what is on this machine, else a name that may be a hub id, else ``None``."""
    if name == "tiny":
        return BUNDLED
    path = Path(name).expanduser()
    if path.exists():
        return path
    return name if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) else None
