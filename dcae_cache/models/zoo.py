"""The table of known models: names, hub repos, architecture and scaling factor. No torch, no network.

Factors and architectures are those published with mit-han-lab/efficientvit and dc-ai-projects/DC-Gen.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ..errors import CheckpointError, UnknownModelError
from .diffusers_config import spec_from_diffusers_config
from .spec import ActKind, BlockKind, DCAESpec, DecoderSpec, EncoderSpec, NormKind, stages

TINY_FOLDER = Path(__file__).parent / "f32c32-tiny"


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One known autoencoder.

    ``efficientvit_repos`` and ``diffusers_repos`` are hub repos in that layout, the preferred one first; ``folder`` is
    set for a model shipped in this package. ``scaling_factor`` is None where none is published: then the user passes
    one or has it measured. ``former_names``: working names, and repos of such a name; they mean this model, and are
    not asked for. ``spec`` is None only while a shipped model's files are absent.
    """

    name: str
    long_name: str
    spec: DCAESpec | None
    scaling_factor: float | None
    efficientvit_repos: tuple[str, ...] = ()
    diffusers_repos: tuple[str, ...] = ()
    folder: Path | None = None
    file_sha256: str | None = None
    notes: str = ""
    former_names: tuple[str, ...] = ()

    @property
    def aliases(self) -> tuple[str, ...]:
        """Every name that means this model."""
        return (self.name, self.long_name, *self.efficientvit_repos, *self.diffusers_repos, *self.former_names)


@cache
def entries() -> tuple[ModelEntry, ...]:
    """All known models, in the order they are listed to users."""
    return (*_PUBLISHED, _tiny())


def find(name: str) -> ModelEntry | None:
    """The entry of a short name, long name or hub repo id (case doesn't matter), or None."""
    wanted = name.lower()
    for entry in entries():
        if wanted in (alias.lower() for alias in entry.aliases):
            return entry
    return None


def get(name: str) -> ModelEntry:
    """Like ``find``, but raises UnknownModelError with the nearest names."""
    entry = find(name)
    if entry is None:
        raise unknown_model(name)
    return entry


def unknown_model(name: str) -> UnknownModelError:
    """The error for a name that is neither in the table nor a repo or folder."""
    known = {alias.lower(): entry.name for entry in entries() for alias in (entry.name, entry.long_name)}
    close = difflib.get_close_matches(name.lower().rsplit("/", 1)[-1], known, n=6, cutoff=0.5)
    nearest = list(dict.fromkeys(known[match] for match in close))[:3]
    hint = f"nearest: {', '.join(nearest)}" if nearest else f"known: {', '.join(entry.name for entry in entries())}"
    return UnknownModelError(
        f"no model, hub repo (owner/name) or folder called {name!r}; {hint}. `dcae-cache models` lists all"
    )


_F32 = (128, 256, 512, 512, 1024, 1024)
_RES_THEN_EVIT: tuple[BlockKind, ...] = ("res", "res", "res", "evit", "evit", "evit")
_RES_THEN_MULTISCALE: tuple[BlockKind, ...] = ("res", "res", "res") + ("evit_multiscale",) * 3
_BATCH_THEN_RMS: tuple[NormKind, ...] = ("batch", "batch", "batch", "rms", "rms", "rms")
_RELU_THEN_SILU: tuple[ActKind, ...] = ("relu", "relu", "relu", "silu", "silu", "silu")


def _spec_1_0(latent_channels: int, *coarser: int) -> DCAESpec:
    """f32, f64 and f128 of the first release: ``coarser`` are the widths of the stages beyond f32's."""
    tail = stages(coarser, (2,) * len(coarser), "evit")
    encoder = stages(_F32, (0, 4, 8, 2, 2, 2), _RES_THEN_EVIT)
    decoder = stages(_F32, (0, 5, 10, 2, 2, 2), _RES_THEN_EVIT, _BATCH_THEN_RMS, _RELU_THEN_SILU)
    return DCAESpec(latent_channels, EncoderSpec(encoder + tail), DecoderSpec(decoder + tail))


def _spec_1_5(latent_channels: int, *coarser: int) -> DCAESpec:
    """The second release: residual blocks only, the same in both halves, no shortcut at the latent."""
    both = stages((*_F32, *coarser), (0, 5, 10, 4, 4, 4, *(4,) * len(coarser)))
    encoder = EncoderSpec(both, shortcut=False)
    return DCAESpec(latent_channels, encoder, DecoderSpec(both, shortcut=False, out_act="silu"))


_SPEC_F32, _SPEC_F64, _SPEC_F128 = _spec_1_0(32), _spec_1_0(128, 2048), _spec_1_0(512, 2048, 2048)
_SANA_ENCODER = EncoderSpec(stages(_F32, (2, 2, 2, 3, 3, 3), _RES_THEN_MULTISCALE), downsample="strided_conv")
_SPEC_SANA = DCAESpec(
    32, _SANA_ENCODER, DecoderSpec(stages(_F32, (3,) * 6, _RES_THEN_MULTISCALE), upsample="interpolate_conv")
)
_SPEC_SANA_LITE = DCAESpec(32, _SANA_ENCODER, DecoderSpec(stages(_F32, (0, 3, 5, 4, 4, 4)), out_act="silu"))


def _published(name: str, long_name: str, spec: DCAESpec, factor: float | None, notes: str = "") -> ModelEntry:
    owners = ("mit-han-lab", "dc-ai") if long_name.endswith("-1.5") else ("mit-han-lab",)
    repos = tuple(f"{owner}/{long_name}" for owner in owners)
    twins = tuple(f"{repo}-diffusers" for repo in repos)
    return ModelEntry(name, long_name, spec, factor, repos, twins, notes=notes)


def _lite() -> ModelEntry:
    """DC-AE-Lite: published for Sana, again by DC-Gen's owners under a name of its own, and called Turbo before both
    (diffusers pull request 12169)."""
    entry = _published(
        "f32c32-sana-lite", "dc-ae-lite-f32c32-sana-1.1", _SPEC_SANA_LITE, 0.41407, "Sana's, cheaper decoder"
    )
    turbo = "dc-ae-turbo-f32c32-sana-1.1"
    return replace(
        entry,
        efficientvit_repos=(*entry.efficientvit_repos, "dc-ai/dc-ae-lite-f32c32"),
        diffusers_repos=(*entry.diffusers_repos, "dc-ai/dc-ae-lite-f32c32-diffusers"),
        former_names=(
            *("dc-ae-lite-f32c32", "f32c32-lite", "f32c32-sana-turbo", turbo),
            *(f"mit-han-lab/{turbo}", f"mit-han-lab/{turbo}-diffusers"),
        ),
    )


_PUBLISHED = (
    _published("f32c32-mix", "dc-ae-f32c32-mix-1.0", _SPEC_F32, 0.4552, "trained on a mix of datasets"),
    _published("f32c32-in", "dc-ae-f32c32-in-1.0", _SPEC_F32, 0.3189, "trained on ImageNet"),
    _published("f32c32-in-256px", "dc-ae-f32c32-in-1.0-256px", _SPEC_F32, None, "at 256 pixels; no scaling factor"),
    _published("f64c128-mix", "dc-ae-f64c128-mix-1.0", _SPEC_F64, 0.4538, "trained on a mix of datasets"),
    _published("f64c128-in", "dc-ae-f64c128-in-1.0", _SPEC_F64, 0.2889, "trained on ImageNet"),
    _published("f128c512-mix", "dc-ae-f128c512-mix-1.0", _SPEC_F128, 0.3620, "trained on a mix of datasets"),
    _published("f128c512-in", "dc-ae-f128c512-in-1.0", _SPEC_F128, 0.4883, "trained on ImageNet"),
    _published("f32c32-sana", "dc-ae-f32c32-sana-1.1", _SPEC_SANA, 0.41407, "Sana's; same encoder as 1.0"),
    _published("f32c32-sana-1.0", "dc-ae-f32c32-sana-1.0", _SPEC_SANA, 0.41407, "Sana's first decoder"),
    _lite(),
    _published("f32c128-1.5", "dc-ae-f32c128-1.5", _spec_1_5(128), None, "no scaling factor published"),
    _published("f64c128-1.5", "dc-ae-f64c128-1.5", _spec_1_5(128, 1024), 0.5935, "factor of its USiT model"),
)


def _tiny() -> ModelEntry:
    """The model shipped in the package; what it is stands in its own config.json."""
    spec, factor = None, None
    config = TINY_FOLDER / "config.json"
    if config.is_file():
        try:
            spec, factor = spec_from_diffusers_config(json.loads(config.read_text(encoding="utf-8")))
        except (ValueError, CheckpointError) as error:
            raise CheckpointError(f"{config}: {error}; the package is damaged, reinstall it") from error
    return ModelEntry(
        "f32c32-tiny",
        "dc-ae-f32c32-tiny",
        spec,
        factor,
        folder=TINY_FOLDER,
        file_sha256="39dc34f53c7bd2d9f4781a9ca503d272c4ee59c418e580728e9af795d38e23c0",
        notes="shipped with this package, for demos and tests",
    )
