"""Scores of a whole set of reconstructions: FID and LPIPS, by torchmetrics with published networks.

    fid = Fid(weights=None, device=device)
    for images, reconstructions in batches:     # uint8 [N, 3, H, W] each, on any device
        fid.add(images, reconstructions)
    fid.result()                                 # SetScore("FID", 12.3, 2048, None)
    fid.start()                             # the next autoencoder, on the same images: their features are kept

Both need a network's weights: a file (``weights``), or what an earlier download left in torch hub's cache, or a
network to download them. Knows nothing of autoencoders or caches.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..compute.devices import device_errors
from ..compute.exact import exact_math
from ..compute.pieces import Pieces
from ..compute.ranges import to_unit
from ..errors import CheckpointError, HubError, MissingExtraError, ModelError, NoMemoryError, UsageError, one_line

FEW_IMAGES = 2048  # Inception's features have as many dimensions: fewer images can't span their covariance
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
ALEXNET_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"


@dataclass(frozen=True, slots=True)
class SetScore:
    """A score over ``num_images`` images: ``value`` is None where it could not be had, and ``note`` says why.

    With a value, ``note`` is a warning to show beside it, or None.
    """

    name: str
    value: float | None
    num_images: int
    note: str | None = None

    @property
    def label(self) -> str:
        """As a table's head shows it: "FID of 512 images"."""
        return f"{self.name} of {self.num_images} images"


class SetMetric(Protocol):
    """What ``compare_autoencoders`` asks of a score over a set."""

    name: str

    def start(self) -> None: ...
    def add(self, images: Tensor, reconstructions: Tensor) -> object: ...
    def result(self) -> SetScore: ...


class Fid:
    """Frechet inception distance (Heusel et al. 2017) between images and their reconstructions, by torchmetrics.

    ``weights``: torch-fidelity's file for Inception (the name in INCEPTION_URL). ``feature``: another feature network,
    uint8 [N, 3, H, W] to [N, d], with its dimension d as ``num_features``. The images of every autoencoder must be
    the same, in the same order: their features are computed for the first one only.

    Raises MissingExtraError without the extra ``fid``, CheckpointError for an unusable file, HubError where the
    weights are neither at hand nor to be downloaded.
    """

    name = "FID"

    def __init__(
        self, weights: Path | None = None, device: torch.device | None = None, feature: nn.Module | None = None
    ) -> None:
        self._device = device or torch.device("cpu")
        self._metric = _make_fid(weights, feature).to(self._device)
        self._pieces = Pieces(self._device)
        self._num_images = 0  # of this autoencoder
        self._complete = False  # whether the originals of a whole earlier one are in
        self._scored = False  # whether this one has a result

    def start(self) -> None:
        """Forget the reconstructions; the originals too, if the one before broke off."""
        self._complete = self._complete or self._scored
        self._scored = False
        self._metric.reset_real_features = not self._complete
        self._metric.reset()
        self._num_images = 0

    def add(self, images: Tensor, reconstructions: Tensor) -> None:
        """A batch of images and their reconstructions, uint8 [N, 3, H, W]."""
        if not self._complete:
            self._update(images, real=True)
        self._update(reconstructions, real=False)
        self._num_images += len(images)

    def _update(self, images: Tensor, *, real: bool) -> None:
        """Add the features of a batch, in pieces where memory is short: a piece that fails has added nothing."""

        features_sum: Tensor = getattr(self._metric, "real_features_sum" if real else "fake_features_sum")

        def work(rows: slice, size: int) -> None:
            before = features_sum.clone()
            try:
                self._metric.update(images[rows].to(self._device), real=real)
            except Exception:
                features_sum.copy_(before)  # torchmetrics adds to it first, and may fail behind that
                raise

        with exact_math(self._device), torch.inference_mode(), device_errors(self._device, "computing FID"):
            self._pieces.run(len(images), images.shape[1:], work, partial(_no_memory, self.name, self._device))

    def result(self) -> SetScore:
        """The distance over one autoencoder's images. Raises UsageError for fewer than 2: it is one of sets."""
        count = self._num_images
        if count < 2:
            raise UsageError(f"FID compares sets of images and says nothing about {count}; give more, or leave it out")
        if self._complete and count != int(self._metric.real_features_num_samples):
            raise UsageError(
                f"FID had {int(self._metric.real_features_num_samples)} images before and {count} now: every "
                "autoencoder must be given the same"
            )
        self._scored = True
        with exact_math(self._device), device_errors(self._device, "computing FID"):
            value = float(self._metric.compute())
        note = None
        if count < FEW_IMAGES:
            note = (
                f"FID of {count} images is biased upwards and noisy: compare it with FIDs of the same images only; a "
                f"figure to quote takes {FEW_IMAGES} or more"
            )
        return SetScore(self.name, value, count, note)


class Lpips:
    """LPIPS (Zhang et al. 2018) with AlexNet, the mean over the images, as torchmetrics has it. Smaller is closer.

    ``weights``: torchvision's file for AlexNet (the name in ALEXNET_URL). Raises what Fid does, but the library it
    needs is torchvision, which must fit the installed torch.
    """

    name = "LPIPS"

    def __init__(
        self, weights: Path | None = None, device: torch.device | None = None, network: nn.Module | None = None
    ) -> None:
        self._device = device or torch.device("cpu")
        self._network = (network or _make_lpips(weights)).to(self._device)
        self._sum, self._num_images = 0.0, 0

    def start(self) -> None:
        """Forget everything added."""
        self._sum, self._num_images = 0.0, 0

    def add(self, images: Tensor, reconstructions: Tensor) -> list[float]:
        """A batch of images and their reconstructions, uint8 [N, 3, H, W]; their scores."""
        with exact_math(self._device), torch.inference_mode(), device_errors(self._device, "computing LPIPS"):
            values = [
                float(self._network(self._unit(a), self._unit(b)))
                for a, b in zip(images, reconstructions, strict=True)
            ]
        self._sum += sum(values)
        self._num_images += len(values)
        return values

    def result(self) -> SetScore:
        """The mean over the images of one autoencoder."""
        if not self._num_images:
            return SetScore(self.name, None, 0, "no image was added")
        return SetScore(self.name, self._sum / self._num_images, self._num_images)

    def _unit(self, image: Tensor) -> Tensor:
        return to_unit(image[None].to(self._device))


def lpips_if_at_hand(weights: Path | None, device: torch.device | None = None) -> tuple[Lpips | None, str | None]:
    """Lpips without any download: (metric, None), or (None, why not). A ``weights`` file that is no good raises."""
    if weights is not None:
        return Lpips(weights, device), None
    cached = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET_URL.rsplit("/", 1)[-1]
    if not cached.is_file():
        return None, f"its network's weights are not at hand; get {ALEXNET_URL} and pass `lpips_weights` FILE"
    try:
        return Lpips(None, device), None
    except ModelError as error:
        return None, str(error)


def _no_memory(name: str, device: torch.device, rows: slice, reason: str) -> None:
    raise NoMemoryError(f"{device} has no memory to compute {name} of one image ({reason}); leave {name} out")


def _make_fid(weights: Path | None, feature: nn.Module | None) -> Any:
    if feature is None:
        path = _checked(weights, INCEPTION_URL, "fid_weights")
        arguments: dict[str, Any] = {"feature": 2048, "feature_extractor_weights_path": path and str(path)}
    else:
        arguments = {"feature": feature}
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        return FrechetInceptionDistance(**arguments)
    except Exception as error:
        raise _explained(error, "FID", "torch-fidelity", weights, INCEPTION_URL, "fid_weights") from error


def _make_lpips(weights: Path | None) -> nn.Module:
    path = _checked(weights, ALEXNET_URL, "lpips_weights")
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        with _hub_folder_with(path, ALEXNET_URL):
            metric: nn.Module = LearnedPerceptualImagePatchSimilarity(net_type="alex")
            return metric
    except Exception as error:
        raise _explained(error, "LPIPS", "torchvision", weights, ALEXNET_URL, "lpips_weights") from error


def _checked(path: Path | None, url: str, option: str) -> Path | None:
    """The file, once it is known to hold nothing but tensors: the libraries would run any code found in it."""
    if path is None:
        return None
    name = url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise UsageError(f"`{option}` {path}: no such file; expected {name}, from {url}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(
            f"`{option}` {path} is not a file of weights ({one_line(error, 100)}); expected {name}, from {url}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"`{option}` {path} holds no table of tensors; expected {name}, from {url}")
    return path


def _explained(error: Exception, what: str, library: str, weights: Path | None, url: str, option: str) -> ModelError:
    """One line for whatever building a metric raised."""
    said = one_line(error, 160)
    if isinstance(error, OSError):
        return HubError(
            f"{what} needs network weights that can't be downloaded here ({said}); get {url} and pass `{option}` FILE"
        )
    if isinstance(error, ImportError) or "torchvision" in said:
        return MissingExtraError(
            f"{what} needs {library}, which can't be imported beside torch {torch.__version__} ({said}): "
            "pip install 'dcae-cache[fid]', with a torchvision made for that torch"
        )
    if weights is not None:
        return CheckpointError(
            f"`{option}` {weights} does not fit ({said}); expected {url.rsplit('/', 1)[-1]}, from {url}"
        )
    return ModelError(f"{what} can't be set up: {said}")


@contextmanager
def _hub_folder_with(path: Path | None, url: str) -> Iterator[None]:
    """Have torch hub find ``path`` as if it had downloaded it: torchvision takes no file."""
    if path is None:
        yield
        return
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "checkpoints"
        place.mkdir()
        (place / url.rsplit("/", 1)[-1]).symlink_to(path.resolve())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)
