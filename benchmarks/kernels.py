"""Attention and matrix products are timed alone, at the sizes of the model: the rates a pass can reach at best.

Every attention kernel that runs on the device attends to a row's own keys and to twice as many, as rows that read
another row do; the products are the four of a block. Inputs are random. The best rates are the measured roof; what
touches more memory than it computes is bound by the rate of a copy instead.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim_lightning.models.source import BUNDLED
from ddim_lightning.network.attention import Attention, sdpa_attention
from ddim_lightning.network.kernels import CPU_KERNELS, CUDA_KERNELS
from ddim_lightning.network.products import multiply
from ddim_lightning.runtime.timing import StepClock, summarize_ms

from .arguments import make_parser, read_count
from .deadline import Deadline
from .environment import read_block
from .flops import TransformerSizes, count_attention, count_linear, count_pass, make_sizes
from .loading import name_model
from .measuring import list_kernels, tell_kernel
from .output import tell_left_out, tell_origin, tell_place, write_growing
from .plots import Point, plot_roofline
from .published import COGVIDEOX_5B_TRANSFORMER

SCHEMA = "ddim-lightning/kernels/2"
WARM_UP = 3
"""Calls of each kernel left out of the summaries: they pick plans and load code. Their samples are kept."""
KEYS = {"own": 1, "double": 2}
"""What a row attends to, and how many times its own tokens that is."""
PRODUCTS = {"qkv": (1, 3), "out": (1, 1), "up": (1, 4), "down": (4, 1)}
"""The products of a block, from and to how many widths."""
COPIED = 2**26
"""Bytes of what is copied to measure the memory: more than a cache holds."""

Act = Callable[[], Tensor]


def read_config(full_size: bool) -> Mapping[str, Any]:
    """Return the config of the bundled transformer, or of CogVideoX-5B's."""
    if full_size:
        return COGVIDEOX_5B_TRANSFORMER
    config: dict[str, Any] = json.loads((BUNDLED / "transformer" / "config.json").read_text(encoding="utf-8"))
    return config


def draw(shape: Sequence[int], like: Mapping[str, Any], seed: int) -> Tensor:
    """Draw normal numbers where they are needed; zeros would flatter."""
    generator = torch.Generator(like["device"]).manual_seed(seed)
    return torch.randn(*shape, generator=generator, **like)


def time_calls(act: Act, device: torch.device, rounds: int) -> dict[str, Any]:
    """Time calls one behind the other.

    Returns:
        ``ms_median``, ``ms_p10``, ``ms_p90`` without the warm-up, and ``ms``, all samples, the warm-up first.
    """
    clock = StepClock(device)
    for _ in range(WARM_UP + rounds):
        act()
        clock.mark()
    return {name.removeprefix("step_"): value for name, value in summarize_ms(clock.read_ms(), WARM_UP).items()}


def measure_call(act: Act, inputs: Sequence[Tensor], flops: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return what is known of one call: its times, its rate, the kernel that ran and whether its output is finite.

    Args:
        act: The call.
        inputs: What it reads; it and the output once make the bytes it must move at least.
        flops: What it computes.
        args: The device and the rounds.
    """
    device, output = torch.device(args.device), act()
    finite, touched = bool(output.isfinite().all()), sum(tensor.nbytes for tensor in (*inputs, output))
    times = time_calls(act, device, args.rounds)
    rate = flops / (times["ms_median"] * 1e-3) / 1e12
    seen = [kernel["name"] for kernel in list_kernels(act, device, 1)]
    work = {"flops": flops, "bytes": touched, "tflops": rate}
    return {**work, "finite": finite, "seen": seen[0] if seen else None, **times}


def measure_copy(args: argparse.Namespace) -> dict[str, Any]:
    """Measure how fast memory is read and written: a copy of random bytes."""
    device = torch.device(args.device)
    source = draw((COPIED // 4,), {"device": device, "dtype": torch.float32}, args.seed)
    target = torch.empty_like(source)
    times = time_calls(lambda: target.copy_(source), device, args.rounds)
    return {"bytes": 2 * COPIED, "gb_per_s": 2 * COPIED / (times["ms_median"] * 1e-3) / 1e9, **times}


def list_forms(kernel: Attention) -> Iterator[tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]]:
    """Yield how a kernel can be called: plainly, and with the log-sum-exp that merges two sets of keys."""
    yield "plain", lambda query, key, value: kernel.attend(query, key, value, None)
    attend_lse = kernel.attend_lse
    if attend_lse is not None:
        yield "log-sum-exp", lambda query, key, value: attend_lse(query, key, value)[0]


def measure_attention(
    config: Mapping[str, Any],
    sizes: TransformerSizes,
    like: Mapping[str, Any],
    args: argparse.Namespace,
    deadline: Deadline,
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Measure every attention kernel there is a name for.

    Yields:
        After each, a row for each kernel, form and set of keys that ran, and what did not run, with the reason.
    """
    device, heads, channels = like["device"], config["num_attention_heads"], config["attention_head_dim"]
    kernels = CUDA_KERNELS if device.type == "cuda" else CPU_KERNELS
    rows = list[dict[str, Any]]()
    not_run = [{"kernel": name, "reason": "needs a CUDA device"} for name in CUDA_KERNELS if name not in kernels]
    cases = [(keys, kernel, *how) for keys in KEYS for kernel in kernels.values() for how in list_forms(kernel)]
    before = None
    for keys, kernel, form, attend in deadline.take(cases, lambda case: f"{case[1].name}, {case[2]}, {case[0]} keys"):
        if keys != before:
            # (rows, tokens, heads, channels) turned, as the projections leave them.
            query, key, value = (
                draw((args.rows, sizes.tokens * many, heads, channels), like, args.seed + k).transpose(1, 2)
                for k, many in enumerate((1, KEYS[keys], KEYS[keys]))
            )
            exact, before = sdpa_attention(query.float(), key.float(), value.float(), None), keys
        flops = args.rows * count_attention(sizes.tokens, sizes.tokens * KEYS[keys], sizes.width)
        named = {"kernel": kernel.name, "form": form, "keys": keys}
        try:
            with kernel.active():
                error = attend(query, key, value).float() - exact
                row = measure_call(lambda: attend(query, key, value), (query, key, value), flops, args)  # noqa: B023
        except Exception as failure:  # packages raise what they like
            not_run.append({**named, "reason": f"{type(failure).__name__}: {failure}".partition("\n")[0]})
        else:
            deviation = float(error.norm() / exact.norm())
            told = deviation if math.isfinite(deviation) else None  # JSON has no word for it
            rows.append({"kind": "attention", **named, "relative_l2": told, **row})
        yield rows, not_run


def measure_products(
    sizes: TransformerSizes, like: Mapping[str, Any], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure the products of a block."""
    rows = []
    for name, (before, after) in PRODUCTS.items():
        inputs, outputs = before * sizes.width, after * sizes.width
        tokens = draw((args.rows, sizes.tokens, inputs), like, args.seed)
        weight, bias = (
            draw((outputs, inputs), like, args.seed + 1) * inputs**-0.5,
            draw((outputs,), like, args.seed + 2),
        )
        flops = count_linear(args.rows * sizes.tokens, inputs, outputs)
        row = measure_call(lambda: multiply(tokens, weight, bias), (tokens, weight, bias), flops, args)  # noqa: B023
        shape = {"tokens": args.rows * sizes.tokens, "inputs": inputs, "outputs": outputs}
        rows.append({"kind": "product", "product": name, **shape, **row})
    return rows


def find_roof(rows: Sequence[Mapping[str, Any]], sizes: TransformerSizes) -> dict[str, Any]:
    """Return the best rates, and what one row of the transformer takes at them when nothing else takes time."""
    best = {
        kind: max((row for row in rows if row["kind"] == kind), key=lambda row: float(row["tflops"]))
        for kind in ("attention", "product")
    }
    work = count_pass(sizes, 1)
    seconds = work.linear / best["product"]["tflops"] + work.attention / best["attention"]["tflops"]
    return {
        "attention_tflops": best["attention"]["tflops"],
        "attention_kernel": best["attention"]["kernel"],
        "product_tflops": best["product"]["tflops"],
        "product": best["product"]["product"],
        "row_tflop": {"linear": work.linear / 1e12, "attention": work.attention / 1e12},
        "row_ms": seconds / 1e12 * 1e3,
    }


@torch.inference_mode()
def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure every kernel; yield the result after each of attention that runs, JSON-ready.

    Raises:
        RuntimeError: No attention kernel runs.
    """
    deadline, config = Deadline(args.budget), read_config(args.full_size)
    sizes, like = make_sizes(config), {"device": torch.device(args.device), "dtype": getattr(torch, args.dtype)}
    products, copied = measure_products(sizes, like, args), measure_copy(args)
    attention, not_run = list[dict[str, Any]](), list[dict[str, Any]]()
    for attention, not_run in measure_attention(config, sizes, like, args, deadline):
        if not attention:
            continue
        rows = [*attention, *products]
        yield {
            "schema": SCHEMA,
            "environment": read_block(args.commit),
            "settings": {
                "model": name_model(args),
                "tokens": sizes.tokens,
                "heads": config["num_attention_heads"],
                "head_channels": config["attention_head_dim"],
                "warm_up": WARM_UP,
                **{name: getattr(args, name) for name in ("device", "dtype", "rows", "rounds", "seed")},
            },
            "rows": rows,
            "not_run": not_run,
            "copy": copied,
            "roof": find_roof(rows, sizes),
            **tell_left_out(deadline),
        }
    if not attention:
        raise RuntimeError(f"attention: no kernel runs on {args.device}: {not_run}")


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the summary a person reads, from the result alone."""
    settings, roof = result["settings"], result["roof"]
    about = (
        f"On {tell_place(result)}, {settings['rows']} row(s) of {settings['tokens']} tokens, {settings['heads']} heads "
        f"of {settings['head_channels']}; {settings['rounds']} calls each behind {settings['warm_up']} of warm-up. The "
        "error is relative to attention in float32."
    )
    best = (
        f"attention {roof['attention_tflops']:.4g} TFLOP/s ({roof['attention_kernel']}), "
        f"products {roof['product_tflops']:.4g} TFLOP/s ({roof['product']})"
    )
    lines = [
        "# Kernels, measured",
        "",
        tell_origin(result),
        "",
        about,
        "",
        "| attention | form | keys | ms | p10 | p90 | TFLOP/s | error | kernel seen |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_tell_attention(row) for row in result["rows"] if row["kind"] == "attention"),
        "",
        "| product | tokens x inputs x outputs | ms | p10 | p90 | TFLOP/s | kernel seen |",
        "|---|---|---|---|---|---|---|",
        *(_tell_product(row) for row in result["rows"] if row["kind"] == "product"),
        "",
        f"- roof: {best}",
        f"- memory, by a copy: {result['copy']['gb_per_s']:.4g} GB/s read and written",
        f"- one row of the transformer at these rates: {roof['row_ms']:.4g} ms",
        *(
            f"- not run: {' '.join(row[name] for name in ('kernel', 'form', 'keys') if name in row)}: {row['reason']}"
            for row in result["not_run"]
        ),
        "",
        "![Rates of the kernels under the measured roof](roofline.png)",
    ]
    return "\n".join(lines) + "\n"


def _tell_attention(row: Mapping[str, Any]) -> str:
    error = "not finite" if row["relative_l2"] is None else f"{row['relative_l2']:.1e}"
    names = " | ".join((row["kernel"], row["form"], row["keys"]))
    return f"| {names} | {_tell_times(row)} | {error} | {_tell_seen(row)} |"


def _tell_product(row: Mapping[str, Any]) -> str:
    size = f"{row['tokens']} x {row['inputs']} x {row['outputs']}"
    return f"| {row['product']} | {size} | {_tell_times(row)} | {_tell_seen(row)} |"


def _tell_times(row: Mapping[str, Any]) -> str:
    times = " | ".join(f"{row[name]:.4g}" for name in ("ms_median", "ms_p10", "ms_p90"))
    return f"{times} | {row['tflops']:.4g}"


def _tell_seen(row: Mapping[str, Any]) -> str:
    return tell_kernel(row["seen"] or "none")


def write_plots(folder: Path, result: Mapping[str, Any]) -> None:
    """Draw the rate of every kernel over what it computes for each byte it must move, under the measured roof."""
    points = [
        Point(
            " ".join(row[name] for name in ("kernel", "form", "keys", "product") if name in row),
            row["flops"] / row["bytes"],
            row["tflops"],
        )
        for row in result["rows"]
    ]
    best = max(result["roof"]["attention_tflops"], result["roof"]["product_tflops"])
    path, bandwidth = folder / "roofline.png", result["copy"]["gb_per_s"] / 1e3
    plot_roofline(path, points, best, bandwidth, title="Kernels under the measured roof")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the summary and write the files; the exit status is 1 when an output is not finite."""
    parser = make_parser("kernels", __doc__ or "")
    parser.add_argument("--rows", type=read_count, default=1, help="rows of a pass (1)")
    parser.add_argument("--rounds", type=read_count, default=30, help="timed calls of each kernel (30)")
    args = parser.parse_args(argv)
    result = write_growing(args.output, measure(args), make_markdown, write_plots)
    return 0 if all(row["finite"] for row in result["rows"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
