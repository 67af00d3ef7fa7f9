"""Files of a model come from the hub, or from what the hub's cache on this machine holds."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from ddim_lightning.models.source import Source

_OTHER_VARIANTS = [f"*.{variant}{end}" for variant in ("fp16", "bf16") for end in (".*", "-*")]
_SHOWN = 6


def list_patterns(places: Iterable[tuple[str, str]], variant: str | None) -> list[str]:
    """List what the weights of parts are called.

    Args:
        places: Folder inside the repository, ``""`` or ending in a slash, and stem of the files, of each part.
        variant: Of the weights.
    """
    ends = (
        ("*.safetensors", "*.index.json")
        if variant is None
        else (f".{variant}*.safetensors", f"-*.{variant}.safetensors", f".safetensors.index.{variant}.json")
    )
    return [f"{place}{stem}{end}" for place, stem in places for end in ends]


def fetch(
    repository: str, patterns: list[str], source: Source, *, argument: str, revision: str | None, token: str | None
) -> Path:
    """Bring files of a repository onto this machine, as far as they are not here, and return their folder.

    Args:
        repository: Hub id ``owner/name``.
        patterns: Of the files' names.
        source: Where they are kept, and whether the hub is asked.
        argument: For messages: which argument names the repository.
        revision: Of the repository.
        token: Of the hub; ``None`` takes what ``HF_TOKEN`` or a login says.

    Raises:
        OSError: The hub cannot be reached, or has no such repository or revision.
    """
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=None if source.cache_dir is None else Path(source.cache_dir).expanduser(),
                local_files_only=source.local_files_only,
                token=token,
                allow_patterns=patterns,
                ignore_patterns=None if argument == "model" and source.variant is not None else _OTHER_VARIANTS,
            )
        )
    except Exception as error:  # its transport errors are no OSErrors, and their home changes with the hub's version
        reason = " ".join(list(filter(None, str(error).splitlines()))[:2]) or type(error).__name__
        at = "" if revision is None else f" at revision {revision!r}"
        raise OSError(
            f"{argument}: no folder {repository!r} here, and it cannot be had from the hub{at}: {reason}"
        ) from error


def describe_repository(repository: str, source: Source, token: str | None) -> str:
    """Say which weights a repository has, as the end of a message; nothing where the hub cannot be asked."""
    with suppress(Exception):  # this is told beside another mistake, which stays
        if not source.local_files_only:
            files = HfApi(token=token).list_repo_files(repository, revision=source.revision)
            names = [name for name in files if name.endswith((".safetensors", ".bin"))]
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            return f"; the repository has {', '.join(names[:_SHOWN])}{more}"
    return ""
