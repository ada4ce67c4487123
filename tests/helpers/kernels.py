"""What Triton makes of the kernels, asked in a process of its own: whether Triton interprets is settled when it is
imported. ``TRITON_INTERPRET=1 python -m helpers.kernels golden|steps`` or ``python -m helpers.kernels compile`` prints
JSON.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from dcae_cache.models import fused_steps, kernels, zoo
from dcae_cache.models.fused_steps import FusedSteps
from dcae_cache.models.network import DCAENetwork
from dcae_cache.models.steps import EAGER, RMSNorm2d, Steps
from helpers.golden import load, native_weights, relative_error

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
TRITON_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
CARDS = {80: torch.float16, 90: torch.bfloat16}  # compute capability -> what is compiled for it


def golden(*which: str) -> dict[str, float]:
    """Relative errors of each "ARCHITECTURE HALF", in two dtypes. Programs are larger than on a GPU: the
    interpreter takes as long for a small one."""
    kernels.BLOCK = fused_steps._NORM_NUMBERS = 2**17
    errors = {}
    for (name, half), dtype in product(map(str.split, which), DTYPES):
        found = load(name)
        network = DCAENetwork(found.spec, with_encoder=half == "encoder", with_decoder=half == "decoder")
        network.load_state_dict(native_weights(found.spec, half))
        network = network.requires_grad_(False).eval().to(DTYPES[dtype]).to(memory_format=torch.channels_last)
        network.use(FusedSteps())
        given, expected = found.pixels, found.latents
        if half == "decoder":
            given, expected = found.latents, found.reconstruction
        with torch.inference_mode():
            result = getattr(network, half)(given[:1].to(DTYPES[dtype]))
        errors[f"{name} {half} {dtype}"] = relative_error(result, expected[:1])
    return errors


def _steps(steps: Steps, dtype: torch.dtype, x: Tensor) -> dict[str, Tensor]:
    """Each step on an input of 96 channels: not a power of two. Programs are as large as on a GPU."""
    torch.manual_seed(0)
    conv = nn.Conv2d(96, 96, 1).to(dtype).requires_grad_(False)
    norm = RMSNorm2d(96).to(dtype).requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    return {
        "silu": steps.activated(conv, x, "silu"),
        "relu": steps.activated(conv, x, "relu"),
        "gate": steps.gated(conv, x),
        "norm": steps.normed_sum(norm, x.clone(), x.flip(0)),
        "batch norm": steps.normed_sum(nn.BatchNorm2d(96).eval().to(dtype).requires_grad_(False), x.clone(), x),
        "attention": steps.attended(x, dtype),
    }


def _attention(steps: Steps, x: Tensor) -> Tensor:
    return steps.attended(x, x.dtype)


def steps() -> dict[str, Any]:
    """Each step against plain torch in fp32: in either memory format, with NaN, and attention over several chunks of
    positions and of one image alone."""
    torch.manual_seed(1)
    x, large = torch.randn(2, 96, 5, 9), torch.randn(2, 96, 26, 41)  # 1066 positions: more than a chunk
    report: dict[str, Any] = {"errors": {}, "formats differ": [], "batches differ": [], "hides NaN": []}
    with torch.no_grad():
        for name, dtype in DTYPES.items():
            given = x.to(dtype).to(memory_format=torch.channels_last)
            exact = _steps(EAGER, torch.float32, given.float())
            found = _steps(FusedSteps(), dtype, given)
            report["errors"] |= {f"{key} {name}": relative_error(found[key], exact[key]) for key in found}
            other = _steps(FusedSteps(), dtype, given.contiguous())
            report["formats differ"] += [key for key in found if relative_error(other[key], found[key]) > 2e-3]
            wide = large.to(dtype).to(memory_format=torch.channels_last)
            both = _attention(FusedSteps(), wide)
            report["errors"][f"large attention {name}"] = relative_error(both, _attention(EAGER, wide.float()))
            report["batches differ"] += [] if torch.equal(_attention(FusedSteps(), wide[:1]), both[:1]) else [name]
        bad = torch.zeros(1, 96, 2, 2)
        bad[0, 40] = float("nan")
        fused, plain = _steps(FusedSteps(), torch.float32, bad), _steps(EAGER, torch.float32, bad)
        report["hides NaN"] = [key for key in fused if fused[key].isnan().any() < plain[key].isnan().any()]
    trained = _steps(FusedSteps(), torch.float32, x.requires_grad_())
    report["without gradients"] = [key for key, value in trained.items() if not value.requires_grad]
    return report


class _Recorder:
    """Takes the place of a kernel, and notes what it would be compiled as."""

    def __init__(self, kernel: Any, launches: dict[str, tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]]):
        self._kernel, self._launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(0 < size < 65536 for size in grid[1:])
        return self._launch

    def _launch(self, *given: Any, **named: Any) -> None:
        names = self._kernel.arg_names
        kinds = (f"*{TRITON_NAMES[value.dtype]}" if isinstance(value, Tensor) else "i32" for value in given)
        types = dict(zip(names, kinds, strict=False))
        fixed = {name: value for name, value in named.items() if name in names}
        build = {name: value for name, value in named.items() if name not in names}
        free = [name for name, kind in types.items() if kind == "i32"]
        specialised = [p.name for p in self._kernel.params if p.name in free and not p.do_not_specialize]
        assert not specialised, f"{self._kernel.__name__} is compiled anew for each of {specialised}"
        key = f"{self._kernel.__name__} {types} {fixed}"
        self._launches[key] = self._kernel, types, fixed, build


@contextmanager
def recorded() -> Iterator[dict[str, tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]]]:
    launches: dict[str, tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]] = {}
    found = {name: value for name, value in vars(kernels).items() if hasattr(value, "arg_names") and name[0] != "_"}
    for name, kernel in found.items():
        setattr(kernels, name, _Recorder(kernel, launches))
    try:
        yield launches
    finally:
        for name, kernel in found.items():
            setattr(kernels, name, kernel)


def launches_of(model: str, dtype: torch.dtype, shape: tuple[int, ...]) -> dict[str, Any]:
    """What the encoder of a published model launches, at full width."""
    spec = zoo.get(model).spec
    assert spec is not None
    with torch.device("meta"):
        network = DCAENetwork(spec, with_decoder=False).to(dtype)
    network.use(FusedSteps())
    with recorded() as launches, torch.no_grad():
        network.encoder(torch.empty(shape, dtype=dtype, device="meta"))
    return launches


def compile_all(*models: str) -> dict[str, Any]:
    """Compile everything those models launch, without a card; which kernels there are, and how they read memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    report: dict[str, Any] = {"narrow": [], "spills": [], "other sizes": [], "count": 0, "kernels": []}
    for model, (capability, dtype) in product(models, CARDS.items()):
        launches = launches_of(model, dtype, (2, 3, 512, 512))
        for shape in ((1, 3, 128, 128), (3, 3, 1024, 1152)):
            report["other sizes"] += sorted(set(launches_of(model, dtype, shape)) ^ set(launches))
        for key, (kernel, types, fixed, build) in launches.items():
            signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
            aligned = {
                (place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if kind[0] == "*"
            }
            constants = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
            source = ASTSource(kernel, signature, constants, aligned)
            built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=build)
            assert built.asm["cubin"]
            code = built.asm["ptx"]
            report["count"] += 1
            report["kernels"] = sorted({*report["kernels"], kernel.__name__})
            loads = re.findall(r"ld\.global[.\w:]*", code)
            narrow = set(loads) - {"ld.global.v4.b32"}
            if kernel.__name__ == "rms_norm_add" and loads.count("ld.global.v4.b32") > 1:
                narrow.clear()  # of a row's weight and bias there are less than 16 bytes for a thread
            report["narrow"] += [f"{key}: {kind}" for kind in sorted(narrow)]
            report["spills"] += [key] if ".local" in code else []
    return report


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # numpy's, of exp: the interpreter computes with it
    torch.set_num_threads(1)
    task, *names = sys.argv[1:]
    print(json.dumps({"golden": golden, "steps": steps, "compile": compile_all}[task](*names)))
