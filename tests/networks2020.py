"""The networks of xView2's second place 2020, stated anew in plain functions from their published description.

Sources: the papers of the encoders (DPN, DenseNet, SENet, ResNeXt, EfficientNet) and, for what surrounds them, the
layers and names that github.com/selimsef/xview2_solution has in its checkpoints. Nothing here knows our networks. A
network draws a weight where it first needs one, and a norm takes the statistics of what it first sees, so that one pass
makes both a checkpoint of random weights and the logits that belong to it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Parts = tuple[Tensor, Tensor]


class Published:
    """Random weights by the names of the released checkpoints, float32, and layers that compute in float64."""

    def __init__(self, seed: int):
        self.state: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(seed)

    def drawn(self, name: str, shape: tuple[int, ...], scale: float) -> Tensor:
        self.state[name] = torch.randn(shape, generator=self.generator) * scale
        return self.state[name].double()

    def conv(self, name: str, x: Tensor, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1,
             bias: bool = False, same: bool = False) -> Tensor:  # fmt: skip
        fan_in = x.shape[1] // groups * kernel**2
        weight = self.drawn(f"{name}.weight", (channels, x.shape[1] // groups, kernel, kernel), fan_in**-0.5)
        shift = self.drawn(f"{name}.bias", (channels,), 0.1) if bias else None
        if same:  # as TensorFlow pads even sizes: what is odd about it goes below and to the right
            before, total = (kernel - stride) // 2, kernel - stride
            return F.conv2d(F.pad(x, [before, total - before] * 2), weight, shift, stride, groups=groups)
        return F.conv2d(x, weight, shift, stride, kernel // 2, groups=groups)

    def norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        shape = (x.shape[1],)
        gain = 1 + self.drawn(f"{name}.weight", shape, 0.1)
        self.state[f"{name}.weight"] = gain.float()
        shift = self.drawn(f"{name}.bias", shape, 0.1)
        self.state[f"{name}.running_mean"] = x.mean((0, 2, 3)).float()
        self.state[f"{name}.running_var"] = (x.var((0, 2, 3), unbiased=False) + 0.1).float()
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(1)
        mean, var, gain = (self.state[f"{name}.{part}"].double()[:, None, None]
                           for part in ("running_mean", "running_var", "weight"))  # fmt: skip
        return (x - mean) / (var + eps).sqrt() * gain + shift[:, None, None]


Seen = Callable[[Published, Tensor], list[Tensor]]


def again(seen: Seen, net: Published, x: Tensor) -> list[Tensor]:
    """Run an encoder with the weights that another pass has drawn: the same layers on other inputs."""

    class Shared(Published):
        def __init__(self) -> None:
            super().__init__(0)
            self.state = net.state

        def drawn(self, name: str, shape: tuple[int, ...], scale: float) -> Tensor:
            return self.state[name].double()

        def norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
            mean, var, gain, shift = (self.state[f"{name}.{part}"].double()[:, None, None]
                                      for part in ("running_mean", "running_var", "weight", "bias"))  # fmt: skip
            return (x - mean) / (var + eps).sqrt() * gain + shift

    return seen(Shared(), x)


# ---- encoders: five levels, 1/2 to 1/32 ----------------------------------------------------------------
def dpn92(net: Published, x: Tensor) -> list[Tensor]:
    def unit(name: str, x: Tensor, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> Tensor:
        return net.conv(f"{name}.conv", net.norm(f"{name}.bn", x, 1e-3).relu(), channels, kernel, stride, groups)

    x = net.norm("encoder_stages.0.1", net.conv("encoder_stages.0.0", x, 64, 7, 2), 1e-3).relu()
    levels, parts = [x], None
    whole = F.max_pool2d(x, 3, 2, 1)
    for stage, (blocks, width, inner, growth) in enumerate(
        ((3, 256, 96, 16), (4, 512, 192, 32), (20, 1024, 384, 24), (3, 2048, 768, 128)), start=1
    ):
        for block in range(blocks):
            name, stride = f"encoder_stages.{stage}.{block + (stage == 1)}", 2 if stage > 1 and not block else 1
            if not block:
                way = unit(f"{name}.c1x1_w_s{stride}", whole, width + 2 * growth, stride=stride)
                parts = way[:, :width], way[:, width:]
            y = unit(f"{name}.c1x1_a", whole, inner)
            y = unit(f"{name}.c3x3_b", y, inner, 3, stride, 32)
            y = unit(f"{name}.c1x1_c", y, width + growth)
            parts = parts[0] + y[:, :width], torch.cat([parts[1], y[:, width:]], 1)
            whole = torch.cat(parts, 1)
        levels.append(whole)
    levels[-1] = net.norm("encoder_stages.4.3.bn", levels[-1], 1e-3).relu()
    return levels


def densenet161(net: Published, x: Tensor) -> list[Tensor]:
    def unit(norm: str, conv: str, x: Tensor, channels: int, kernel: int = 1) -> Tensor:
        return net.conv(conv, net.norm(norm, x).relu(), channels, kernel)

    x = net.norm("encoder_stages.0.1", net.conv("encoder_stages.0.0", x, 96, 7, 2)).relu()
    levels = [x]
    for stage, layers in enumerate((6, 12, 36, 24), start=1):
        name = f"encoder_stages.{stage}"
        if stage == 1:
            x = F.max_pool2d(x, 3, 2, 1)
        else:
            x = F.avg_pool2d(unit(f"{name}.0.norm", f"{name}.0.conv", x, x.shape[1] // 2), 2)
        for layer in range(1, layers + 1):
            inner = f"{name}.1.denselayer{layer}"
            y = unit(f"{inner}.norm1", f"{inner}.conv1", x, 192)
            x = torch.cat([x, unit(f"{inner}.norm2", f"{inner}.conv2", y, 48, 3)], 1)
        levels.append(x)
    levels[-1] = net.norm("encoder_stages.4.2", x).relu()
    return levels


def _resnext(net: Published, x: Tensor, stem: tuple[str, str], blocks: tuple[int, ...], width: int, excite: bool):
    x = net.norm(stem[1], net.conv(stem[0], x, 64, 7, 2)).relu()
    levels = [x]
    for stage, number in enumerate(blocks, start=1):
        if stage == 1:  # SENets are of Caffe: no border, and what is left over at the end is pooled too
            x = F.max_pool2d(x, 3, 2, 0, ceil_mode=True) if excite else F.max_pool2d(x, 3, 2, 1)
        for block in range(number):
            name = f"encoder_stages.{stage}.1.{block}" if stage == 1 else f"encoder_stages.{stage}.{block}"
            inner, outer, stride = width * 2 ** (stage - 1), 256 * 2 ** (stage - 1), 2 if stage > 1 and not block else 1
            y = net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", x, inner)).relu()
            y = net.norm(f"{name}.bn2", net.conv(f"{name}.conv2", y, inner, 3, stride, 32)).relu()
            y = net.norm(f"{name}.bn3", net.conv(f"{name}.conv3", y, outer))
            if excite:
                s = net.conv(f"{name}.se_module.fc1", y.mean((2, 3), keepdim=True), outer // 16, bias=True).relu()
                y = y * net.conv(f"{name}.se_module.fc2", s, outer, bias=True).sigmoid()
            if not block:
                x = net.norm(f"{name}.downsample.1", net.conv(f"{name}.downsample.0", x, outer, 1, stride))
            x = (x + y).relu()
        levels.append(x)
    return levels


def seresnext50(net: Published, x: Tensor) -> list[Tensor]:
    return _resnext(net, x, ("encoder_stages.0.conv1", "encoder_stages.0.bn1"), (3, 4, 6, 3), 128, excite=True)


def resnext101(net: Published, x: Tensor) -> list[Tensor]:
    return _resnext(net, x, ("encoder_stages.0.0", "encoder_stages.0.1"), (3, 4, 23, 3), 256, excite=False)


def efficientnet_b2(net: Published, x: Tensor) -> list[Tensor]:
    x = F.silu(net.norm("encoder_stages.0.1", net.conv("encoder_stages.0.0", x, 32, 3, 2, same=True), 1e-3))
    levels, block, starts = [x], 0, {0: 1, 5: 2, 8: 3, 16: 4}
    stage, first = 1, 0
    for blocks, kernel, stride, expansion, channels in (
        (2, 3, 1, 1, 16), (3, 3, 2, 6, 24), (3, 5, 2, 6, 48), (4, 3, 2, 6, 88), (4, 5, 1, 6, 120), (5, 5, 2, 6, 208),
        (2, 3, 1, 6, 352),
    ):  # fmt: skip
        for number in range(blocks):
            if block in starts:
                stage, first = starts[block], block
            name, y, inputs = f"encoder_stages.{stage}.{block - first}", x, x.shape[1]
            if expansion > 1:
                y = F.silu(net.norm(f"{name}._bn0", net.conv(f"{name}._expand_conv", y, inputs * expansion), 1e-3))
            y = net.conv(f"{name}._depthwise_conv", y, y.shape[1], kernel, 1 if number else stride, y.shape[1],
                         same=True)  # fmt: skip
            y = F.silu(net.norm(f"{name}._bn1", y, 1e-3))
            s = F.silu(net.conv(f"{name}._se_reduce", y.mean((2, 3), keepdim=True), inputs // 4, bias=True))
            y = y * net.conv(f"{name}._se_expand", s, y.shape[1], bias=True).sigmoid()
            y = net.norm(f"{name}._bn2", net.conv(f"{name}._project_conv", y, channels), 1e-3)
            x, block = (x + y if number else y), block + 1
            if block in (*starts, 23):
                levels.append(x)
    return levels


# ---- the whole ------------------------------------------------------------------------------------------
def decode(net: Published, levels: list[Tensor], channels: tuple[int, ...], classes: int, scse: bool) -> Tensor:
    """Decode skips at 1/2 .. 1/16 and the deepest level; ``channels`` from the finest step to the deepest, as his."""
    *skips, x = levels
    for step, (skip, width) in enumerate(zip(reversed(skips), reversed(channels))):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = net.conv(f"decoder_stages.{3 - step}.layer.1", x, width, 3, bias=True).relu()
        x = net.conv(f"bottlenecks.{step}.seq.0", torch.cat([x, skip], 1), width, 3, bias=True).relu()
        if scse:
            name = f"bottlenecks.{step}.seq.2"
            c = net.conv(f"{name}.fc1", x.mean((2, 3), keepdim=True), width // 2, bias=True).relu()
            c = net.conv(f"{name}.fc2", c, width, bias=True).sigmoid()
            x = torch.cat([x * c, x * net.conv(f"{name}.spatial_se.0", x, 1).sigmoid()], 1)
    if scse:
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = net.conv("last_upsample.layer.1", x, channels[0] // 2, 3, bias=True).relu()
    else:
        x = corners(x)
    return net.conv("final.0", x, classes, bias=True)


def corners(x: Tensor) -> Tensor:
    """Double the sides of (B, C, H, W) by linear interpolation between grids whose corners coincide."""
    for axis in (2, 3):
        size = x.shape[axis]
        place = torch.arange(2 * size, dtype=x.dtype) * (size - 1) / (2 * size - 1)
        below = place.floor().long().clamp(max=size - 2)
        share = (place - below).view([-1 if i == axis else 1 for i in range(4)])
        x = x.index_select(axis, below) * (1 - share) + x.index_select(axis, below + 1) * share
    return x


def localization(seed: int, seen: Seen, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return a checkpoint's ``state_dict`` and its logits for x (B, 3, H, W), normalised, float64."""
    net = Published(seed)
    return net.state, decode(net, seen(net, x), (64, 128, 256, 256), 1, scse=False)


def siamese(
    seed: int, seen: Seen, channels: tuple[int, ...], x: Tensor, scse: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """As ``localization``, for x (B, 6, H, W): both images as skips, the later one alone at the deepest level."""
    net = Published(seed)
    before = seen(net, x[:, :3])
    after = again(seen, net, x[:, 3:])
    levels = [torch.cat(pair, 1) for pair in zip(before, after)][:-1] + [after[-1]]
    return net.state, decode(net, levels, channels, 5, scse)


NETWORKS: dict[str, Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]] = {
    "d92_loc": lambda x: localization(1, dpn92, x),
    "d161_loc": lambda x: localization(2, densenet161, x),
    "d92_softmax": lambda x: siamese(3, dpn92, (64, 128, 256, 256), x),
    "d161_softmax": lambda x: siamese(4, densenet161, (64, 96, 192, 256), x),
    "se50_pseudo": lambda x: siamese(5, seresnext50, (48, 92, 192, 256), x, scse=True),
    "b2_softmax": lambda x: siamese(6, efficientnet_b2, (48, 96, 192, 256), x),
    "r101_sgd": lambda x: siamese(7, resnext101, (48, 96, 192, 192), x),
}
"""Model of the experiment -> normalised images -> ``state_dict`` and logits."""
FILES = {
    "d92_loc": "localization_dpn_unet_dpn92_{}_best_dice",
    "d161_loc": "localization_densenet_unet_densenet161_3_{}_best_dice",
    "d92_softmax": "softmax_dpn_seamese_unet_shared_dpn92_{}_best_xview",
    "d161_softmax": "softmax_densenet_seamese_unet_shared_densenet161_{}_best_xview",
    "se50_pseudo": "pseudo_scseresnext_seamese_unet_shared_seresnext50_{}_best_xview",
    "b2_softmax": "softmax_sampling_efficient_seamese_unet_shared_efficientnet-b2_{}_best_xview",
    "r101_sgd": "sgd_resnext_seamese_unet_shared_resnext101_{}_best_xview",
}
"""Model of the experiment -> name of a released file, but for the fold."""
