"""Settings are recommended for an adapter by the card beside it, and for a model by a file in its folder.

Nothing heavy is imported here, so that the command line can show what will be taken before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ddim_lightning.engine.config import Lora, make_loras
from ddim_lightning.models.adapter_card import find_edit_adapter

FILE = "recommended.yaml"
_ASSETS = Path(__file__).parents[1] / "assets"
_KEYS = {"num_inference_steps", "guidance_scale", "inverter", "editor", "sources"}


def read_recommended(model: str, subfolder: str | None = None, lora: Sequence[Lora] = ()) -> dict[str, Any]:
    """Read what is recommended for a model and its adapters.

    Args:
        model: ``tiny``, a folder, or a hub id. A folder may hold a ``recommended.yaml`` of its own; every other model
            gets what is published for CogVideoX.
        subfolder: Where the pipeline folder lies inside the folder.
        lora: An edit adapter among them goes before the model.

    Returns:
        ``num_inference_steps``, ``guidance_scale``, ``inverter`` and ``editor``, the last two as ``{class_path,
        init_args}``; and ``sources``, where each comes from.

    Raises:
        ValueError: A file with other keys, one that is no YAML, or see `find_edit_adapter`.
    """
    path = _find(model, subfolder)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"model: {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or set(found) - _KEYS:
        raise ValueError(f"model: {path} must have the keys {', '.join(sorted(_KEYS))}, got {found!r}")
    if path.parent.parent != _ASSETS or path.parent.name == "tiny":
        published = read_recommended("")
        found = {**published, **found, "sources": {**published["sources"], **found.get("sources", {})}}
    return _put_adapter_first(found, lora)


def take_recommended(
    given: Mapping[str, Any], model: str, subfolder: str | None = None, lora: Sequence[Lora] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Take what is given, and for ``None`` what is recommended.

    Args:
        given: Values by the names of `read_recommended`.
        model: See `read_recommended`.
        subfolder: Likewise.
        lora: Likewise.

    Returns:
        The values; and where those come from that were not given.
    """
    found = read_recommended(model, subfolder, lora)
    taken = {name: found[name] if value is None else value for name, value in given.items()}
    return taken, {name: str(found["sources"].get(name, "")) for name, value in given.items() if value is None}


def fill_recommended(config: Any) -> Any:
    """Fill null, in place, with what is recommended for the model and its adapters, and return the config.

    Args:
        config: The options of `edit` by their names, or those of ``predict``, with the module under ``model``; those
            of another module stay as they are.
    """
    model = config.get("model")
    options = config if model is None or isinstance(model, str) else model.get("init_args")
    if options and isinstance(options.get("model"), str) and "guidance_scale" in options:
        inside = options.get("subfolder") or options.get("source.subfolder")
        for name, value in read_recommended(options["model"], inside, _make_loras(options.get("lora"))).items():
            for key in (name, f"schedule.{name}"):
                if key in options and options[key] is None:
                    options[key] = value
    return config


def _make_loras(given: Any) -> tuple[Lora, ...]:
    """Make LoRAs of an option as a parser leaves it, with mappings in objects of its own."""
    specs = [given] if isinstance(given, str) else given or ()
    return make_loras([one if isinstance(one, str) else vars(one.get("init_args") or one) for one in specs])


def _put_adapter_first(found: dict[str, Any], lora: Sequence[Lora]) -> dict[str, Any]:
    adapter = find_edit_adapter([one.file for one in lora])
    if adapter is None:
        return found
    card = adapter.card
    values = {name: getattr(card, name) for name in ("num_inference_steps", "guidance_scale", "editor")}
    values = {name: value for name, value in values.items() if value is not None}
    origins = dict.fromkeys(values, f"recommended for the adapter {adapter.path}")
    return {**found, **values, "sources": {**found["sources"], **origins}}


def _find(model: str, subfolder: str | None) -> Path:
    if model == "tiny":
        return _ASSETS / "tiny" / FILE
    own = Path(model).expanduser() / (subfolder or "") / FILE
    return own if model and own.is_file() else _ASSETS / "cogvideox" / FILE
