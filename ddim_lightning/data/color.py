"""HDR and wide-gamut colors become those of an SDR screen, by the curves that the ITU published.

Three steps, all on linear light: the file's transfer function is undone (ITU-R BT.2100: PQ is light on a screen, HLG is
light in front of the camera; BT.1886 for SDR), its primaries are exchanged for those of BT.709 (BT.2087, what lies
outside is clipped), and the gamma of BT.1886 is applied. Diffuse white, 203 cd/m2 in PQ and 75 % in HLG by BT.2408,
becomes SDR white. Of what is brighter, only highlights are left: light above 90 % of white is rolled off towards white,
since the curves of BT.2390 and BT.2446 would darken skin and paper as well. HLG is shown with a system gamma of 1, near
the 0.94 that BT.2390 gives for a screen of that brightness: then a color keeps its hue.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from av.video.reformatter import ColorPrimaries, ColorTrc
from numpy.typing import NDArray
from torch import Tensor

HDR_NAMES = {int(ColorTrc.SMPTE2084): "PQ", int(ColorTrc.ARIB_STD_B67): "HLG"}
"""The transfer functions of HDR, as FFmpeg numbers them."""

_PQ_WHITE = 203.0  # cd/m2
_HLG_WHITE = 0.75
_KNEE = 0.9  # of the light of SDR white
_GAMMA = 2.4
_D65 = (0.3127, 0.3290)
_CHROMATICITIES = {
    int(ColorPrimaries.BT709): ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    int(ColorPrimaries.BT2020): ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    int(ColorPrimaries.SMPTE432): ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
}


def needs_conversion(transfer: int, primaries: int) -> bool:
    """Say whether colors are HDR, or SDR of the wide gamut of BT.2020; anything else is shown as it is.

    Args:
        transfer: FFmpeg's number of the transfer function.
        primaries: FFmpeg's number of the primaries.
    """
    return transfer in HDR_NAMES or primaries == ColorPrimaries.BT2020


def to_sdr(codes: NDArray[np.uint16], transfer: int, primaries: int) -> Tensor:
    """Convert colors to those of an SDR screen.

    Args:
        codes: (h, w, 3) R'G'B' of the file, 0 .. 65535.
        transfer: FFmpeg's number of the transfer function: PQ, HLG, or one of SDR.
        primaries: FFmpeg's number of the primaries; those of BT.2020 where they are unknown.

    Returns:
        (3, h, w) uint8, BT.709.

    Source: ITU-R BT.2100-2 tables 4 and 5, BT.2087-0, BT.1886-0, BT.2408-7 section 2; for HLG's system gamma,
    BT.2390-11 section 6.2.
    """
    planes = torch.from_numpy(_light_table(transfer)[codes.transpose(2, 0, 1)])
    light = (_to_bt709(primaries) @ planes.reshape(3, -1)).view_as(planes)
    if transfer in HDR_NAMES:
        light = _roll_off(light)
    return light.clamp_(0, 1).pow_(1 / _GAMMA).mul_(255).round_().to(torch.uint8)


@functools.cache
def _light_table(transfer: int) -> NDArray[np.float32]:
    """Linear light of each of the 65,536 codes, 1 being SDR white."""
    code = np.linspace(0, 1, 1 << 16)
    if transfer == ColorTrc.SMPTE2084:
        light = _pq_eotf(code) / _PQ_WHITE
    elif transfer == ColorTrc.ARIB_STD_B67:
        light = _hlg_inverse_oetf(code) / _hlg_inverse_oetf(np.array(_HLG_WHITE))
    else:
        light = code**_GAMMA
    return light.astype(np.float32)


def _pq_eotf(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """Light in cd/m2 of a PQ code 0 .. 1; BT.2100 table 4."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = code ** (1 / m2)
    return 10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def _hlg_inverse_oetf(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """Light before the camera, 0 .. 1, of an HLG code 0 .. 1; BT.2100 table 5."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


def _roll_off(light: Tensor) -> Tensor:
    """Bring light of any strength below 1, by its largest channel, so that the color stays."""
    peak = light.amax(0)
    over = (peak - _KNEE).clamp_min(0)
    rolled = peak - over + (1 - _KNEE) * over / (over + 1 - _KNEE)
    return light * (rolled / peak.clamp_min(1e-9))


@functools.cache
def _to_bt709(primaries: int) -> Tensor:
    """Matrix (3, 3) from linear light of these primaries to that of BT.709; white is D65 in all of them."""
    own = _CHROMATICITIES.get(primaries, _CHROMATICITIES[int(ColorPrimaries.BT2020)])
    matrix = np.linalg.inv(_to_xyz(_CHROMATICITIES[int(ColorPrimaries.BT709)])) @ _to_xyz(own)
    return torch.from_numpy(matrix).float()


def _to_xyz(chromaticities: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in (*chromaticities, _D65)]).T
    rgb, white = columns[:, :3], columns[:, 3]
    return rgb * np.linalg.solve(rgb, white)
