"""Classifiers and feature extractors by timm name: the only place of the project that imports timm.

For: honest yardsticks and strong backbones, from scratch, from a local weights file or from the hub.
Promises: an unknown name lists the closest ones; a weights file fits tensor by tensor or is an error that names the
tensors, except a head of another size, which is left out and said so in the log; loading a file runs no code.
Does not: change a model's architecture or fetch anything unless `pretrained` asks for it.
"""

from __future__ import annotations

import difflib
import logging
import pickle
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from outlast.errors import ModelError
from outlast.model import own_weights

logger = logging.getLogger(__name__)

NAMED_TENSORS = 5
Layout = Literal["resnet", "efficientnet", "transformer", "other"]


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel, for images scaled to 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def classifier(
    name: str,
    classes: int,
    *,
    channels: int = 3,
    pretrained: bool = False,
    weights: Path | str | None = None,
    image_size: tuple[int, int] | None = None,
    also: Sequence[str] = (),
) -> nn.Module:
    """Return the timm model `name`, mapping (B, channels, H, W) to logits (B, classes).

    `weights` is a local .safetensors, .pth, .pt or .bin file; `pretrained` without it asks the hub. `image_size`
    (height, width) matters to models with position embeddings of fixed size. `also` holds names of other models that
    an error message should suggest. Raises ModelError.
    """
    _require_known(name, also)
    if own_weights.are_coming():
        pretrained, weights = False, None
    if pretrained and weights is None:
        model = _from_hub(name, classes, channels, image_size)
    else:
        model = _fitting(name, classes, channels, image_size)
    if image_size is not None:
        _require_takes(model, name, channels, image_size)
    if weights is not None:
        load_weights(model, weights)
    return model


def extractor(
    name: str,
    *,
    channels: int = 3,
    pretrained: bool = False,
    weights: Path | str | None = None,
    image_size: tuple[int, int] | None = None,
    also: Sequence[str] = (),
) -> nn.Module:
    """Return the timm model `name` without its head, mapping (B, channels, H, W) to `features(model)` numbers each.

    Everything else is as for `classifier`. Raises ModelError.
    """
    model = classifier(
        name, 1, channels=channels, pretrained=pretrained, weights=weights, image_size=image_size, also=also
    )
    reset: Any = model
    reset.reset_classifier(0)
    return model


def features(model: nn.Module) -> int:
    """How many features an `extractor` gives for each image."""
    described: Any = model
    return int(getattr(described, "head_hidden_size", None) or described.num_features)


class Tokens(nn.Module):
    """A vision transformer as it sees images (B, 3, H, W) in 0..1 of any size: its last tokens (B, channels, h, w).

    Both sides are multiples of `patch`. Frozen but for its `unfrozen` last blocks, and normalised as its weights were
    trained. Raises ModelError if the model is no vision transformer, or its weights are missing or do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, *, pretrained: bool, weights: Path | str | None, unfrozen: int = 0) -> None:
        super().__init__()
        _require_known(name, ())
        if own_weights.are_coming():
            pretrained, weights = False, None
        model = _from_hub(name, 0, 3, None, any_size=True) if pretrained and weights is None else None
        model = model if model is not None else _create(name, 0, 3, None, any_size=True)
        if not isinstance(model, VisionTransformer):
            raise ModelError(
                f"{name!r} is no vision transformer, and gives no tokens of an image of any size",
                hint="name one such as vit_small_patch14_dinov2",
            )
        if weights is not None:
            load_weights(model, weights)
        self.model = model
        self.channels, self.patch = int(model.embed_dim), int(model.patch_embed.patch_size[0])
        known = normalisation(name)
        self.register_buffer("mean", torch.tensor(known.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(known.std)[:, None, None], persistent=False)
        self.trained = [*model.blocks[max(len(model.blocks) - unfrozen, 0) :]] if unfrozen else []
        model.requires_grad_(False)
        for block in self.trained:
            block.requires_grad_(True)
        self.keep_frozen()

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        seen = (images - self.mean) / self.std
        tokens: Tensor = self.model.get_intermediate_layers(seen, n=1, reshape=True, norm=True)[0]
        return tokens

    def keep_frozen(self) -> None:
        """Evaluating where it is frozen: neither dropout nor statistics of batches."""
        training = self.training
        self.model.eval()
        for block in self.trained:
            block.train(training)


def layout(model: nn.Module) -> Layout:
    """How the parts of a timm model are named, for those that can be cut in two; "other" for all the rest.

    resnet       layer1 to layer4. efficientnet: conv_stem, then stages in `blocks`.
    transformer  tokens through `blocks`, the first of which is a class token that the image is judged by.
    """
    described: Any = model
    if isinstance(model, ResNet):
        return "resnet"
    if isinstance(model, (EfficientNet, MobileNetV3)):
        return "efficientnet"
    if isinstance(model, VisionTransformer) and described.cls_token is not None and described.global_pool == "token":
        return "transformer"
    return "other"


def stages(model: nn.Module) -> list[tuple[str, int, int]]:
    """(name of the module, pixels of the image to one of its output along a side, channels) of each resolution."""
    described: Any = model
    return [(found["module"], found["reduction"], found["num_chs"]) for found in described.feature_info]


def normalisation(name: str, *, also: Sequence[str] = ()) -> Normalisation:
    """Return the mean and std that the pretrained weights of `name` were trained with. Raises ModelError."""
    _require_known(name, also)
    published = timm.models.get_pretrained_cfg(name)
    if published is None:
        return Normalisation(timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    return Normalisation(tuple(published.mean), tuple(published.std))


def has_cached_weights(name: str) -> bool:
    """Whether the published weights of `name` are in the hub's cache on this disk. Raises ModelError."""
    _require_known(name, ())
    published = timm.models.get_pretrained_cfg(name)
    if published is None or not published.hf_hub_id:
        return False
    files = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(huggingface_hub.try_to_load_from_cache(published.hf_hub_id, file), str) for file in files)


def weights_host() -> tuple[str, int]:
    """Name and port of the hub that weights are fetched from."""
    address = urlsplit(huggingface_hub.constants.ENDPOINT)
    return address.hostname or "", address.port or 443


def load_weights(model: nn.Module, path: Path | str) -> list[str]:
    """Load a local weights file into a timm model; return the head tensors that were left out (other size).

    The first convolution is adapted to another number of channels (summed or repeated, as timm does). Raises
    ModelError naming the tensors when anything else is missing, unexpected or of another shape.
    """
    path = Path(path)
    state = read_weights(path)
    published = getattr(model, "pretrained_cfg", None) or {}
    # Models whose file layout differs from their modules bring their own translation, by this name throughout timm.
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is not None:
        state = dict(translate(state, model))
    own = model.state_dict()
    _adapt_first_convolutions(state, own, published.get("first_conv"))
    left_out = _drop_head_of_other_size(state, own, published.get("classifier"))
    _require_fit(state, own, left_out, path)
    model.load_state_dict(state, strict=False)
    if left_out:
        logger.warning(
            "%s: the head was left out, it has another number of classes (%s); it starts from scratch",
            path.name,
            ", ".join(left_out),
        )
    return left_out


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a local .safetensors, .pth, .pt or .bin file, by name. Raises ModelError."""
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}", hint="name an existing .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        # Torch's own sentence about a pickle advises to execute it.
        refused = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than tensors, or is no such file" if refused else _first_line(error)
        raise ModelError(
            f"{path} is not a readable weights file: {reason}",
            hint="expected .safetensors, or a .pth file that holds tensors only (it is read without running code)",
        ) from error
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path} does not hold a state dict", hint="save it with torch.save(model.state_dict(), path)")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def published_weights(name: str) -> dict[str, Tensor]:
    """The published tensors of the timm model `name` without its head, from the hub or its cache. Raises ModelError."""
    _require_known(name, ())
    return dict(_from_hub(name, 0, 3, None).state_dict())


def fit_channels(kernel_OCHW: Tensor, channels: int) -> Tensor:
    """A first convolution for RGB fitted to another number of channels, summed or repeated as timm does."""
    fitted: Tensor = adapt_input_conv(channels, kernel_OCHW)
    return fitted


def _require_known(name: str, also: Sequence[str]) -> None:
    # `is_model` splits "resnet18.a1_in1k" itself; a pretrained tag that does not exist is found below.
    if timm.is_model(name):
        architecture, _, tag = name.partition(".")
        known = timm.list_pretrained(f"{architecture}.*") if tag else []
        if not tag or name in known:
            return
        raise ModelError(
            f"model {architecture!r} has no pretrained tag {tag!r}",
            hint=f"tags: {', '.join(full.partition('.')[2] for full in known) or 'none'}",
        )
    candidates = [*also, *timm.list_models()]
    close = difflib.get_close_matches(name, candidates, n=3, cutoff=0.6)
    own = f"; the task's own models: {', '.join(also)}" if also else ""
    suggestion = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists the names"
    raise ModelError(f"there is no model named {name!r}", hint=f"{suggestion}{own}")


def _create(
    name: str, classes: int, channels: int, image_size: tuple[int, int] | None, *, pretrained: bool = False,
    any_size: bool = False,
) -> nn.Module:  # fmt: skip
    published = timm.models.get_pretrained_cfg(name)
    options: dict[str, Any] = {"num_classes": classes, "in_chans": channels, "pretrained": pretrained}
    if image_size is not None and published is not None and published.fixed_input_size:
        options["img_size"] = image_size
    if any_size:
        options["dynamic_img_size"] = True
    model: nn.Module = timm.create_model(name, **options)
    return model


def _fitting(name: str, classes: int, channels: int, image_size: tuple[int, int] | None) -> nn.Module:
    try:
        return _create(name, classes, channels, image_size)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:  # what timm's models raise, by their design
        if image_size is None:
            raise
        raise _too_small(name, image_size, error) from error


def _require_takes(model: nn.Module, name: str, channels: int, image_size: tuple[int, int]) -> None:
    """One image through the model: many architectures have a least size, and only their forward pass knows it."""
    training = model.training
    try:
        with torch.no_grad():  # not inference_mode: a model may keep what it computes here
            model.eval()(torch.zeros(1, channels, *image_size))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise _too_small(name, image_size, error) from error
    finally:
        model.train(training)


def _too_small(name: str, image_size: tuple[int, int], error: Exception) -> ModelError:
    height, width = image_size
    return ModelError(
        f"model {name!r} does not take images of {height}x{width} pixels: {_first_line(error)}",
        hint="give another image size (larger, or a multiple of 32), or name another model",
    )


def _from_hub(
    name: str, classes: int, channels: int, image_size: tuple[int, int] | None, *, any_size: bool = False
) -> nn.Module:
    published = timm.models.get_pretrained_cfg(name)
    if published is None or not published.has_weights:
        raise ModelError(
            f"timm publishes no pretrained weights for {name!r}",
            hint="set model.pretrained=false, or name a file with model.weights=FILE",
        )
    try:
        with _hub_offline_without_internet():
            return _create(name, classes, channels, image_size, pretrained=True, any_size=any_size)
    except Exception as error:
        # Whatever fails here (DNS, proxy, a full disk, a hub error) is of no type that timm or its clients promise.
        source = published.hf_hub_id or published.url
        raise ModelError(
            f"the pretrained weights of {name!r} could not be fetched from {source}: {_first_line(error)}",
            hint="without internet, attach the file to the session and name it: model.weights=/path/to/"
            "model.safetensors; or train from scratch: model.pretrained=false",
        ) from error


@contextmanager
def _hub_offline_without_internet() -> Iterator[None]:
    """Where the hub's name does not resolve, look in the local cache only: at once instead of after 50 s of retries."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    name, port = weights_host()
    try:
        # Behind a proxy the name need not resolve here: leave the decision to the proxy.
        if not getproxies():
            socket.getaddrinfo(name, port)
    except OSError:
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def _adapt_first_convolutions(
    state: dict[str, Tensor], own: Mapping[str, Tensor], names: str | Sequence[str] | None
) -> None:
    for name in _listed(names):
        key = f"{name}.weight"
        if key in state and key in own and state[key].ndim == 4 and state[key].shape[1] == 3 != own[key].shape[1]:
            state[key] = fit_channels(state[key], own[key].shape[1])


def _drop_head_of_other_size(
    state: dict[str, Tensor], own: Mapping[str, Tensor], names: str | Sequence[str] | None
) -> list[str]:
    left_out = []
    for name in _listed(names):
        keys = [key for key in (f"{name}.weight", f"{name}.bias") if key in state and key in own]
        if any(state[key].shape[0] != own[key].shape[0] for key in keys):
            left_out += keys
    for key in left_out:
        del state[key]
    return left_out


def _require_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], left_out: Sequence[str], path: Path) -> None:
    missing = [key for key in own if key not in state and key not in left_out]
    unexpected = [key for key in state if key not in own]
    reshaped = [
        f"{key} {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    details = [
        f"{kind} {len(keys)}: {'; '.join(keys[:NAMED_TENSORS])}{'; ...' if len(keys) > NAMED_TENSORS else ''}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("other shape", reshaped))
        if keys
    ]
    if details:
        raise ModelError(
            f"{path} does not fit the model", hint="name the model that these weights were made with", details=details
        )


def _listed(names: str | Sequence[str] | None) -> Sequence[str]:
    return [names] if isinstance(names, str) else names or []


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
