"""Colour spaces that a file describes otherwise than by an ICC profile, as the ICC profile that says the same.

By code points (cICP of PNG, nclx of AVIF and HEIF: ITU-T H.273), by gamma and chromaticities (gAMA and cHRM of PNG),
or as Adobe RGB (EXIF). Knows nothing of files or pixels.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import SampleSkipped

Chromaticities = tuple[float, float, float, float, float, float, float, float]  # x, y of white, red, green, blue
Curve = tuple[float, ...]  # (g,), or (g, a, b, c, d): x^g, or (a x + b)^g from d on and c x below

_D65, _C, _DCI = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)
_BT709: Chromaticities = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_BT601: Chromaticities = (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070)
# H.273, table 2. 2 is "unspecified": taken for BT.709, as everybody does.
_PRIMARIES: dict[int, Chromaticities] = {
    1: _BT709,
    2: _BT709,
    6: _BT601,
    7: _BT601,
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (*_DCI, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
_SRGB_CURVE: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
# H.273, table 3. Television's camera curves (BT.709, 601, 2020 and their kin) are shown as sRGB's, as browsers do.
_CURVES: dict[int, Curve] = {
    **dict.fromkeys((1, 2, 6, 11, 12, 13, 14, 15), _SRGB_CURVE),
    4: (2.2,),
    5: (2.8,),
    8: (1.0,),
}
_HDR = {16: "PQ", 18: "HLG"}
_ADOBE: Chromaticities = (*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_NEAR_SRGB = 0.05  # a gamma within 5 % of 1/2.2 stands for sRGB's curve, as in libpng
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])


def refuse_hdr(transfer: int) -> None:
    """Raise SampleSkipped "unsupported" for the transfer characteristics of high dynamic range."""
    if transfer in _HDR:
        raise SampleSkipped(
            "unsupported",
            f"it is of high dynamic range ({_HDR[transfer]}), and how bright it should be shown is a matter of taste: "
            "tone-map it to sRGB first",
        )


def refuse_hdr_profile(profile: bytes) -> None:
    """The same for an ICC profile that says so in its cicp tag (ICC.1:2022, 9.2.17)."""
    count = int.from_bytes(profile[128:132], "big")
    for number in range(min(count, 100)):
        tag, offset, size = struct.unpack_from(
            ">4sII", profile.ljust(132 + 12 * (number + 1), b"\0"), 132 + 12 * number
        )
        if tag == b"cicp" and size >= 12 and offset + 10 <= len(profile):
            refuse_hdr(profile[offset + 9])


def of_code_points(primaries: int, transfer: int, full_range: bool) -> bytes | None:
    """The profile of a space named by H.273's numbers (``full_range`` of its RGB values); None for sRGB.

    Raises SampleSkipped "unsupported" for high dynamic range, and for numbers and ranges that are not read here.
    """
    refuse_hdr(transfer)
    if primaries not in _PRIMARIES or transfer not in _CURVES or not full_range:
        which = f"primaries {primaries}, transfer {transfer}{'' if full_range else ', narrow range'}"
        raise SampleSkipped("unsupported", f"its colour space ({which} of ITU-T H.273) is not read here")
    if _PRIMARIES[primaries] == _BT709 and _CURVES[transfer] == _SRGB_CURVE:
        return None
    return _profile(_PRIMARIES[primaries], _CURVES[transfer])


def of_gamma(gamma: float | None, chromaticities: tuple[float, ...] | None) -> bytes | None:
    """The profile of a PNG's gAMA and cHRM, each where given and possible; None for sRGB."""
    curve = _SRGB_CURVE
    if gamma is not None and 0.1 <= gamma <= 10 and abs(gamma * 2.2 - 1) >= _NEAR_SRGB:
        curve = (1 / gamma,)
    points = _BT709
    if chromaticities is not None and len(chromaticities) == 8 and _is_possible(chromaticities):
        x = chromaticities
        points = (x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7])
    if curve == _SRGB_CURVE and max(abs(a - b) for a, b in zip(points, _BT709, strict=True)) < 0.002:
        return None
    return _profile(points, curve)


def adobe_rgb() -> bytes:
    """Adobe RGB (1998)."""
    return _profile(_ADOBE, (2.19921875,))


def _is_possible(chromaticities: tuple[float, ...]) -> bool:
    x = np.array(chromaticities[0::2])
    y = np.array(chromaticities[1::2])
    if y.min() <= 0 or x.min() < 0 or (x + y).max() > 1.001:
        return False
    corners = np.stack([x[1:], y[1:], 1 - x[1:] - y[1:]])
    if abs(np.linalg.det(corners)) < 1e-3:
        return False
    weights = np.linalg.solve(corners, np.array([x[0] / y[0], 1, (1 - x[0] - y[0]) / y[0]]))
    return bool(weights.min() > 0)


@lru_cache(maxsize=64)
def _profile(chromaticities: Chromaticities, curve: Curve) -> bytes:
    """A display profile of version 4 (ICC.1:2022): three colorants, adapted to D50, and one curve."""
    kind, values = (0, curve) if len(curve) == 1 else (3, curve)
    trc = b"para" + bytes(4) + struct.pack(">HH", kind, 0) + _fixed(values)
    tags = {b"wtpt": b"XYZ " + bytes(4) + _fixed(_D50)}
    for name, column in zip(b"rgb", _to_d50(chromaticities).T, strict=True):
        tags[bytes([name]) + b"XYZ"] = b"XYZ " + bytes(4) + _fixed(column)
        tags[bytes([name]) + b"TRC"] = trc
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), bytes(4), 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + _fixed(_D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _to_d50(chromaticities: Chromaticities) -> NDArray[np.float64]:
    """Linear RGB to XYZ, the white moved to D50 by Bradford's transform."""
    x, y = np.array(chromaticities[0::2]), np.array(chromaticities[1::2])
    whole = np.stack([x / y, np.ones(4), (1 - x - y) / y])
    white, corners = whole[:, 0], whole[:, 1:]
    matrix = corners * np.linalg.solve(corners, white)
    gains = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    moved: NDArray[np.float64] = np.linalg.inv(_BRADFORD) @ np.diag(gains) @ _BRADFORD @ matrix
    return moved


def _fixed(values: NDArray[np.float64] | tuple[float, ...]) -> bytes:
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)
