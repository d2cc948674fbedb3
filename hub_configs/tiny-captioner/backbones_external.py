"""Backbones of other libraries: torchvision, timm and transformers' `AutoBackbone`.

Names are
    torchvision:NAME     an ImageNet classifier of torchvision, e.g. torchvision:resnet101
    timm:NAME            a model of timm, e.g. timm:resnest50d
    transformers:ID      a Hub id or a folder, e.g. transformers:microsoft/resnet-50; only its configuration is read
and `ALIASES`, the plain names of the encoders that older captioners used. torchvision and timm are not requirements of
Pictale: they are looked for when such a backbone is built, and not before. Nothing here loads weights.

Every class keeps the contract at the head of `backbones.py`. The option `out_stage` says which grid is given back,
counted by resolution: -1 the last, -2 the one before it with twice the rows and columns, ...

Shapes: B batch, C channels, H x W pixels, h x w grid.
"""

from __future__ import annotations

import copy
import difflib
import importlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import AutoBackbone, AutoConfig, PreTrainedModel
from transformers.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

from .errors import ModelFolderError

LIBRARIES = ("torchvision", "timm", "transformers")
TORCHVISION_NAMES = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"wide_resnet{depth}_2" for depth in (50, 101)),
    *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
    *(f"squeezenet1_{version}" for version in (0, 1)),
    "mobilenet_v2",
    *(f"mobilenet_v3_{size}" for size in ("small", "large")),
    *(f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")),
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    "googlenet",
    "inception_v3",
)
ALIASES = {
    **{name: f"torchvision:{name}" for name in TORCHVISION_NAMES},
    # what is in torchvision for everything else is only in timm for ResNeSt
    **{f"resnest{depth}": f"timm:resnest{depth}{kind}" for depth, kind in ((14, "d"), (26, "d"), (50, "d"))},
    **{f"resnest{depth}": f"timm:resnest{depth}e" for depth in (101, 200, 269)},
}
PROBE_SIZE = 224  # side of the made-up picture that shapes are read from, where the model does not name its own


def is_external(name: str) -> bool:
    """Whether `name` is of this file."""
    return name in ALIASES or name.split(":", 1)[0] in LIBRARIES and ":" in name


def resolve(name: str) -> tuple[str, str]:
    """Library and name within it of any name of this file."""
    library, _, model = ALIASES.get(name, name).partition(":")
    return library, model


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The half sentence "did you mean 'a' or 'b'", or nothing if no known name is close."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return "did you mean {}".format(" or ".join(f"'{match}'" for match in close)) if close else ""


def require(package: str, name: str) -> Any:
    """Import an optional package for the backbone `name`.

    Raises:
        ModelFolderError: it is not installed, or it is and cannot be imported.
    """
    packages = "torchvision" if package == "torchvision" else "torchvision timm"
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        missing = (error.name or package).split(".")[0]
        raise ModelFolderError(
            f"The backbone '{name}' needs the package {missing}, which is not installed: "
            f"pip install {packages} torch=={torch.__version__.split('+')[0]}"
        ) from None
    except Exception as error:  # noqa: BLE001 - a torchvision built for another torch raises RuntimeError, OSError, ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelFolderError(
            f"The backbone '{name}' needs the package {package}, and the one installed does not work with torch "
            f"{torch.__version__} ({reason}): install both anew from the same index, as https://pytorch.org shows."
        ) from None


def meta_call(module: nn.Module, height: int, width: int, batch: int = 2) -> Any:
    """What `module` makes of pixel values [batch, 3, height, width], as to shape only: no arithmetic is done.

    Two pictures, because a BatchNorm in training mode refuses one of a single cell. Its statistics stay as they are.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    pixels = torch.empty(batch, 3, height, width, device="meta", dtype=next(module.parameters()).dtype)
    with torch.no_grad(), torch.device("meta"):
        return functional_call(module, {key: tensor.to("meta") for key, tensor in state.items()}, (pixels,))


class ExternalBackbone(nn.Module):
    """What the three libraries have in common; a subclass sets `body`, `channels` and `probe_size` and has `forward`.

    Attributes:
        options (dict): what, with the name, rebuilds this backbone without asking the network.
    """

    channels: int
    probe_size: int = PROBE_SIZE

    def __init__(self) -> None:
        super().__init__()
        self.options: dict[str, Any] = {}
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}
        self._stages: list[nn.ModuleList] = []

    @property
    def stride(self) -> int:
        """Pixels of the picture to a row of the grid, rounded: not every network divides evenly."""
        return round(self.probe_size / self.grid(self.probe_size, self.probe_size)[0])

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) for a picture of height x width.

        Raises:
            ModelFolderError: the network takes no picture of that size.
        """
        if (height, width) not in self._grids:
            try:
                shape = meta_call(self, height, width).shape
            except Exception as error:  # noqa: BLE001 - each network has its own way to refuse a size
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise ModelFolderError(
                    f"This backbone takes no pictures of {height} x {width} ({reason}): set image_size, "
                    f"for instance to {self.probe_size}."
                ) from None
            self._grids[height, width] = tuple(shape[2:])
        return self._grids[height, width]

    def stages(self) -> list[nn.ModuleList]:
        """Parts in order from the input, one for each resolution; parts that work on sequences stay single."""
        if not self._stages:
            self._stages = stages_of(self, self.probe_size)
        return list(self._stages)

    @torch.no_grad()
    def fuse(self) -> ExternalBackbone:
        """A copy for inference, channels last."""
        return copy.deepcopy(self).eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def keep_buffers(self) -> None:
        """Make every buffer part of the saved weights: transformers fills those that are not with whatever is in
        memory when it loads a model, because it builds it without memory first.
        """
        for module in self.modules():
            for name in list(module._non_persistent_buffers_set):
                module.register_buffer(name, getattr(module, name), persistent=True)


def loose_parts(module: nn.Module) -> list[nn.Module]:
    """Children in order; lists, chains and what holds a list are opened, unless they have parameters of their own."""
    parts: list[nn.Module] = []
    for child in module.children():
        inner = list(child.children())
        # a DenseNet block is a ModuleDict with a forward of its own, which makes it more than a list
        is_list = type(child).forward in (nn.Sequential.forward, nn.Module.forward)
        holds_list = any(isinstance(part, nn.ModuleList) for part in inner)
        if inner and not child._parameters and (is_list or holds_list or isinstance(child, PreTrainedModel)):
            parts += loose_parts(child)
        else:
            parts.append(child)
    return parts


def output_sizes(module: nn.Module, parts: Sequence[nn.Module], size: int) -> list[torch.Size | None]:
    """Resolution (h, w) of what each of `parts` gives inside `module`; None for a sequence or what is not used."""
    sizes: dict[int, torch.Size] = {}

    def look(part: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.dim() == 4:
            sizes[id(part)] = output.shape[2:]

    hooks = [part.register_forward_hook(look) for part in parts]
    try:
        meta_call(module, size, size)
    finally:
        for hook in hooks:
            hook.remove()
    return [sizes.get(id(part)) for part in parts]


def group_by_resolution(parts: Sequence[nn.Module], sizes: Sequence[torch.Size | None]) -> list[list[nn.Module]]:
    """Neighbours of one resolution together; what has no parameters goes with what follows it."""
    groups: list[list[nn.Module]] = []
    last: torch.Size | None = None
    waiting: list[nn.Module] = []
    for part, size in zip(parts, sizes, strict=True):
        if not any(True for _ in part.parameters()):
            if groups and not waiting and size == last:
                groups[-1].append(part)  # an activation after its convolution
            else:
                waiting.append(part)
        elif groups and not waiting and size is not None and size == last:
            groups[-1].append(part)
        else:
            groups.append([*waiting, part])
            waiting, last = [], size
    return groups


class OwnParameters(nn.Module):
    """The parameters that `owner` holds itself, not those of its children; always the ones it has at the moment."""

    def __init__(self, owner: nn.Module):
        super().__init__()
        self._parameters = owner._parameters  # the same dict, because from_pretrained puts new parameters into it


def stages_of(module: nn.Module, size: int) -> list[nn.ModuleList]:
    """`ExternalBackbone.stages`. Parameters that lie above all parts, such as position embeddings, are in the first."""
    root = module
    while not root._parameters and len(children := list(root.children())) == 1:
        root = children[0]
    parts = loose_parts(root)
    groups = group_by_resolution(parts, output_sizes(module, parts, size))
    if any(parameter is not None for parameter in root._parameters.values()):
        groups[0].insert(0, OwnParameters(root))
    return [nn.ModuleList(group) for group in groups]


# -- torchvision -------------------------------------------------------------------------------------------------------

# where the classifier begins, and the side branches that only its training needs
_HEADS = ("avgpool", "classifier", "fc", "head", "heads", "dropout", "flatten")
_BRANCHES = ("aux1", "aux2", "AuxLogits")


def plain_sequence(module: nn.Module) -> bool:
    """Whether `module` only calls its children one after the other."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def leaves(module: nn.Module) -> list[nn.Module]:
    """The links of a chain of chains."""
    return [leaf for child in module.children() for leaf in (leaves(child) if plain_sequence(child) else [child])]


def shorten(module: nn.Module, kept: set[int]) -> nn.Sequential:
    """The chain with only the links whose id is in `kept`, under the names they had."""
    links = OrderedDict()
    for name, child in module.named_children():
        if plain_sequence(child):
            child = shorten(child, kept)
            if len(child):
                links[name] = child
        elif id(child) in kept:
            links[name] = child
    return nn.Sequential(links)


class TorchvisionBackbone(ExternalBackbone):
    """A classifier of torchvision without its head: the grid that its last convolution gives.

    torchvision's classifiers run their children in order, but for side branches. A pooling after the last convolution
    is dropped with the head, so VGG-19 gives the 14 x 14 x 512 grid of Show, Attend and Tell. Parameters keep
    torchvision's names below `body`.
    """

    def __init__(self, name: str, out_stage: int = -1, **options):
        super().__init__()
        library = require("torchvision", f"torchvision:{name}")
        known = library.models.list_models(module=library.models)
        if name not in known:
            raise ModelFolderError(unknown_sentence(f"torchvision:{name}", known, "torchvision.models.list_models()"))
        if name.startswith(("googlenet", "inception")):
            options = {"aux_logits": False, "init_weights": False, **options}  # its initialisation takes seconds
        self.probe_size = 299 if name.startswith("inception") else PROBE_SIZE
        model = library.models.get_model(name, weights=None, **options)
        body = body_of(model)
        try:
            parts = leaves(body)
            sizes = output_sizes(body, parts, self.probe_size)
            groups = group_by_resolution(parts, sizes)
            self.body = shorten(body, {id(part) for group in chosen(groups, out_stage) for part in group})
            _, self.channels, rows, columns = meta_call(self.body, self.probe_size, self.probe_size).shape
        except ModelFolderError:
            raise
        except Exception:  # noqa: BLE001 - whatever a network that is no chain raises, the reason is the same
            rows, columns = 0, 0
        if not rows or rows != columns:  # a square picture; torchvision's Swin has its channels last
            raise ModelFolderError(
                f"The torchvision model '{name}' is not a chain of convolutions, so its grid cannot be had; "
                f"take the model of that kind from timm (timm:NAME) or from the Hub (transformers:ID)."
            )
        self.keep_buffers()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.body(pixel_values)  # [B, C, h, w]


def body_of(model: nn.Module) -> nn.Sequential:
    """The children of a torchvision classifier up to its head, side branches left out."""
    links = OrderedDict()
    for name, child in model.named_children():
        if name in _HEADS:
            break
        if name not in _BRANCHES:
            links[name] = child
    if type(model).__name__ == "DenseNet":
        links["relu"] = nn.ReLU()  # DenseNet.forward has it between the features and the pooling
    return nn.Sequential(links)


def chosen(groups: list[list[nn.Module]], out_stage: int) -> list[list[nn.Module]]:
    """The groups up to `out_stage`, which counts like an index."""
    count = len(groups)
    if not -count <= out_stage < count:
        raise ModelFolderError(f"out_stage {out_stage} does not exist: this backbone has {count} stages.")
    return groups[: out_stage % count + 1]


# -- timm --------------------------------------------------------------------------------------------------------------


class TimmBackbone(ExternalBackbone):
    """A model of timm as a feature extractor (`features_only`); parameters are named by timm's extractor."""

    def __init__(self, name: str, out_stage: int = -1, **options):
        super().__init__()
        library = require("timm", f"timm:{name}")
        if not library.is_model(name):
            raise ModelFolderError(unknown_sentence(f"timm:{name}", library.list_models(), "timm.list_models()"))
        config = library.get_pretrained_cfg(name)
        self.probe_size = config.input_size[-1] if config else PROBE_SIZE
        self.arguments = {"features_only": True, "out_indices": (out_stage,), **options}  # asked for again by training
        try:
            self.body = library.create_model(name, pretrained=False, **self.arguments)
        except (RuntimeError, TypeError, AssertionError, IndexError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelFolderError(f"timm cannot make a grid of features of '{name}' ({reason}).") from None
        self.channels = self.body.feature_info.channels()[-1]
        # Format.NHWC is an Enum of timm; models without the attribute give [B, C, h, w]
        self.channels_last = getattr(getattr(self.body, "output_fmt", None), "value", "NCHW") == "NHWC"
        self.keep_buffers()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.body(pixel_values)[-1]
        return features.permute(0, 3, 1, 2) if self.channels_last else features  # [B, C, h, w]


# -- transformers ------------------------------------------------------------------------------------------------------

_NOT_KEPT = ("id2label", "label2id", "architectures", "transformers_version", "_name_or_path", "dtype", "problem_type")


class TransformersBackbone(ExternalBackbone):
    """A model that transformers' `AutoBackbone` knows, made from its configuration alone.

    Args:
        name (str): Hub id or folder; not looked at when `config` is given.
        config (dict): the configuration with its `model_type`, as a saved captioner keeps it.
    """

    def __init__(self, name: str, out_stage: int | None = None, config: dict | None = None):
        super().__init__()
        found = AutoConfig.for_model(**config) if config else read_config(name)
        try:
            if out_stage is not None:
                found.out_indices = [out_stage]
            self.body = AutoBackbone.from_config(found)
        except (ValueError, AttributeError) as error:
            known = "Unrecognized configuration" not in str(error)
            reason = str(error).strip().splitlines()[0] if known else "AutoBackbone has none of that kind"
            raise ModelFolderError(
                f"transformers:{name} is a '{found.model_type}' model, which cannot serve as a backbone ({reason})."
            ) from None
        size = getattr(found, "image_size", None) or PROBE_SIZE
        self.probe_size = max(size) if isinstance(size, (list, tuple)) else size
        self.channels = self.body.channels[-1]
        self.options = {"config": {k: v for k, v in found.to_dict().items() if k not in _NOT_KEPT}}

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.body(pixel_values).feature_maps[-1]  # [B, C, h, w]


def read_config(name: str):
    """The configuration of a Hub id or folder.

    Raises:
        ModelFolderError: there is none, or the Hub cannot be reached.
    """
    verbosity = get_verbosity()
    set_verbosity_error()  # of transformers, which would log the same a second time
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelFolderError(
            f"The configuration of the backbone 'transformers:{name}' cannot be read ({reason}): give a folder with a "
            "config.json, or a Hub id while online."
        ) from None
    finally:
        set_verbosity(verbosity)


# -- the door ----------------------------------------------------------------------------------------------------------


def unknown_sentence(name: str, known: Sequence[str], command: str) -> str:
    library, _, model = name.partition(":")
    hint = did_you_mean(model, known)
    return f"The backbone '{name}' is not known" + (f": {hint}?" if hint else f"; {command} lists what is there.")


BUILDERS: dict[str, Callable[..., ExternalBackbone]] = {
    "torchvision": TorchvisionBackbone,
    "timm": TimmBackbone,
    "transformers": TransformersBackbone,
}


def build_external(name: str, **options) -> ExternalBackbone:
    """An untrained backbone by a name of this file.

    Raises:
        ModelFolderError: the name is not known, or its package is not installed or does not work.
    """
    library, model = resolve(name)
    if not model:
        raise ModelFolderError(f"'{name}' names no model: write {library}:NAME.")
    try:
        return BUILDERS[library](model, **options)
    except TypeError as error:
        raise ModelFolderError(f"The backbone '{name}' does not take these backbone_options ({error}).") from None
