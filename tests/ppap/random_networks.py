"""Random networks: graphs of layers drawn from a seed, and tiny ones of published families."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from timm.models import (
    beit,
    convmixer,
    convnext,
    eva,
    levit,
    mlp_mixer,
    swin_transformer_v2,
    vision_transformer,
)
from timm.models import resnet as timm_resnet
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import convnext as tv_convnext
from torchvision.models import (
    densenet,
    efficientnet,
    mnasnet,
    mobilenetv2,
    regnet,
    resnet,
    shufflenetv2,
    swin_transformer,
    vgg,
)
from torchvision.models import vision_transformer as tv_vision_transformer

__all__ = ["CLASSES", "FAMILIES", "SIDE", "RandomNetwork", "tiny_network"]

CLASSES, SIDE, WIDTH = 5, 8, 4
ACTIVATIONS = (F.silu, F.gelu, torch.tanh, F.softplus, F.mish)


class Block(nn.Module):
    """(B, WIDTH, SIDE, SIDE) -> the same, by layers of one kind."""

    def __init__(self, kind: str, draw: random.Random) -> None:
        super().__init__()
        self.kind = kind
        self.activation = draw.choice(ACTIVATIONS)
        dilation, kernel = draw.choice((1, 2)), draw.choice((1, 3))
        self.conv1 = nn.Conv2d(
            WIDTH, WIDTH, kernel, padding=dilation * (kernel // 2), dilation=dilation,
            groups=draw.choice((1, 1, 2, 4)), bias=draw.random() < 0.5,
            padding_mode=draw.choice(("zeros", "zeros", "zeros", "circular")),
        )  # fmt: skip
        match kind:
            case "batch norm":
                self.bn1 = nn.BatchNorm2d(WIDTH, affine=draw.random() < 0.8)
                self.bn1.running_mean.normal_(generator=_generator(draw))  # type: ignore[union-attr]
                self.bn1.running_var.uniform_(0.5, 2, generator=_generator(draw))  # type: ignore[union-attr]
            case "group norm":
                self.norm = nn.GroupNorm(2, WIDTH)
            case "tokens" | "read":
                self.norm, self.lin1 = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
            case "two names":
                self.conv2 = self.conv1
            case "tied":
                self.conv2 = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
                self.conv1 = nn.Conv2d(WIDTH, WIDTH, 1)
                self.conv2.weight = self.conv1.weight
            case "attention":
                self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=draw.random() < 0.5)
            case "sequence":
                self.conv1d = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
            case "gate":
                self.fc1, self.fc2 = nn.Linear(WIDTH, 2), nn.Linear(2, WIDTH)
            case "hook":
                self.kept: dict[str, Tensor] = {}
                self.conv1.register_forward_hook(lambda layer, x, out: self.kept.update(out=out))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        match self.kind:
            case "batch norm":
                return self.activation(self.bn1(self.conv1(x)))
            case "group norm":
                return x + self.conv1(self.activation(self.norm(x)))
            case "tokens":
                return self._folded(tokens + self.activation(self.lin1(self.norm(tokens))))
            case "read":
                return self._folded(F.linear(self.norm(tokens), self.lin1.weight, self.lin1.bias))
            case "two names" | "tied":
                return self.activation(self.conv2(self.activation(self.conv1(x))))
            case "twice":
                return self.activation(self.conv1(self.activation(self.conv1(x))))
            case "attention":
                if not self.attn.batch_first:
                    tokens = tokens.transpose(0, 1)
                mixed = self.attn(tokens, tokens, tokens, need_weights=False)[0]
                return self._folded(mixed if self.attn.batch_first else mixed.transpose(0, 1))
            case "sequence":
                return x + self.activation(self.conv1d(x.flatten(2))).view_as(x)
            case "gate":
                gate = self.fc2(self.activation(self.fc1(x.mean((2, 3)))))
                return x * torch.sigmoid(gate)[:, :, None, None]
            case "pool":
                small = F.avg_pool2d(self.conv1(x), 3, 2, ceil_mode=True)
                return F.interpolate(small, x.shape[2:], mode="bilinear")
            case "hook":
                self.conv1(x)
                return self.activation(self.kept["out"])
            case _:
                return x + self.activation(self.conv1(x))

    @staticmethod
    def _folded(tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, (SIDE, SIDE))


KINDS = (
    "plain", "batch norm", "batch norm", "group norm", "tokens", "read", "two names", "tied",
    "twice", "attention", "sequence", "gate", "pool", "hook",
)  # fmt: skip


class RandomNetwork(nn.Module):
    """A stem, one to four blocks whose outputs may be added to an earlier one's, and a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        kinds = [KINDS[seed % len(KINDS)], *draw.choices(KINDS, k=draw.randrange(3))]
        self.blocks = nn.ModuleList(Block(kind, draw) for kind in kinds)
        self.skips = [draw.random() < 0.3 for _ in kinds]
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        before = x = self.stem(x)
        for block, skip in zip(self.blocks, self.skips, strict=True):
            x = block(x) + (before if skip else 0)
            before = x
        found: Tensor = self.fc(x.mean((2, 3)))
        return found


def _generator(draw: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(draw.randrange(2**31))


def _vgg() -> nn.Module:
    network = vgg.VGG(vgg.make_layers([4, "M", 8], batch_norm=True), CLASSES)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    return network


_small: dict[str, Any] = {"num_classes": CLASSES, "embed_dim": 8, "depth": 1, "num_heads": 2}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "timm ResNet": lambda: timm_resnet.ResNet(
        timm_resnet.BasicBlock, (1, 1, 1, 1), num_classes=CLASSES, channels=(4, 4, 8, 8)
    ),
    "timm ViT": lambda: vision_transformer.VisionTransformer(16, 8, **_small),
    "timm BEiT": lambda: beit.Beit(16, 8, use_rel_pos_bias=True, init_values=1.0, **_small),
    "timm EVA": lambda: eva.Eva(16, 8, use_rot_pos_emb=True, qkv_fused=False, **_small),
    "timm Swin V2": lambda: swin_transformer_v2.SwinTransformerV2(
        16, 4, num_classes=CLASSES, embed_dim=8, depths=(1,), num_heads=(2,), window_size=2
    ),
    "timm ConvNeXt": lambda: convnext.ConvNeXt(
        num_classes=CLASSES, depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), patch_size=1
    ),
    "timm ConvMixer": lambda: convmixer.ConvMixer(8, 1, 3, 4, num_classes=CLASSES),
    "timm MLP-Mixer": lambda: mlp_mixer.MlpMixer(
        CLASSES, img_size=16, patch_size=8, num_blocks=1, embed_dim=8
    ),
    "timm LeViT": lambda: levit.Levit(
        16, num_classes=CLASSES, embed_dim=(8,), key_dim=4, depth=(1,), num_heads=(2,)
    ),
    "torchvision ResNet": lambda: resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], CLASSES),
    "torchvision DenseNet": lambda: densenet.DenseNet(4, (1, 1), 4, num_classes=CLASSES),
    "torchvision MobileNet V2": lambda: mobilenetv2.MobileNetV2(
        CLASSES, 0.25, [[1, 8, 1, 1], [2, 16, 1, 2]]
    ),
    "torchvision MNASNet": lambda: mnasnet.MNASNet(0.1, CLASSES),
    "torchvision ShuffleNet V2": lambda: shufflenetv2.ShuffleNetV2(
        [1, 1, 1], [4, 8, 8, 8, 16], CLASSES
    ),
    "torchvision EfficientNet": lambda: efficientnet.EfficientNet(
        [efficientnet.MBConvConfig(2, 3, 2, 8, 8, 1), efficientnet.MBConvConfig(2, 3, 1, 8, 8, 1)],
        0.0, num_classes=CLASSES, last_channel=16,
    ),
    "torchvision ConvNeXt": lambda: tv_convnext.ConvNeXt(
        [tv_convnext.CNBlockConfig(4, 8, 1), tv_convnext.CNBlockConfig(8, None, 1)],
        num_classes=CLASSES,
    ),
    "torchvision RegNet": lambda: regnet.RegNet(
        regnet.BlockParams([1] * 4, [4, 4, 8, 8], [4] * 4, [1.0] * 4, [2, 2, 1, 1], 0.25),
        CLASSES, stem_width=4,
    ),
    "torchvision Swin": lambda: swin_transformer.SwinTransformer(
        [4, 4], 8, [2], [2], [2, 2], num_classes=CLASSES
    ),
    "torchvision ViT": lambda: tv_vision_transformer.VisionTransformer(
        16, 8, 1, 2, 8, 16, num_classes=CLASSES
    ),
    "torchvision VGG": _vgg,
}  # fmt: skip


def tiny_network(family: str) -> nn.Module:
    """A network of a family, 16x16 images, with weights that let every layer show."""
    torch.manual_seed(0)
    network = FAMILIES[family]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2, generator=generator)
    return network.eval()
