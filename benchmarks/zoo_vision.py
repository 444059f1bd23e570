"""The zoo's networks for pictures: classifiers are trained for a few minutes, others have random weights."""

from __future__ import annotations

from functools import partial
from typing import Any

from zoo_cases import Case, of_every_size, pictures
from zoo_taught import KINDS, kinds, taught


def _seeded() -> None:
    import torch

    torch.manual_seed(0)


def _timm(name: str, side: int, **settings: Any) -> Any:
    import timm

    _seeded()
    network = timm.create_model(name, pretrained=False, num_classes=KINDS, **settings)
    return taught(name, network, side)


def _torchvision(name: str, side: int) -> Any:
    import torchvision

    _seeded()
    network = getattr(torchvision.models, name)(weights=None, num_classes=KINDS)
    return taught(name, network, side)


def _digits() -> Any:
    """Train a small CNN on scikit-learn's digits, in seconds."""
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    _seeded()
    found = load_digits()
    x = torch.tensor(found.images[:1200, None] / 16, dtype=torch.float32)
    y = torch.tensor(found.target[:1200])
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
    )
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval()


def _digit_pictures(rng: Any, count: int) -> Any:
    """Return digits of scikit-learn, each with noise of its own, so that none repeats."""
    import numpy as np
    from sklearn.datasets import load_digits

    images = load_digits().images[:, None] / 16
    chosen = images[rng.integers(0, len(images), count)]
    return {"x": (chosen + rng.normal(0, 0.1, chosen.shape)).astype(np.float32)}


class _Outputs:
    """Makers of networks with several outputs or dense ones; torch is imported when one is made."""

    @staticmethod
    def segmenter(name: str) -> Any:
        import torchvision
        from torch import nn

        _seeded()
        network = getattr(torchvision.models.segmentation, name)(
            weights=None, weights_backbone=None, num_classes=6
        )

        class Masks(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, x: Any) -> Any:
                return self.network(x)["out"]

        return Masks().eval()

    @staticmethod
    def detector() -> Any:
        """Return SSDLite's backbone and heads, without the selection of boxes afterwards."""
        import torch
        import torchvision
        from torch import nn

        _seeded()
        network = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=6
        )

        class Heads(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.backbone, self.head = network.backbone, network.head

            def forward(self, x: Any) -> Any:
                found = self.head(list(self.backbone(x).values()))
                return found["bbox_regression"], torch.softmax(found["cls_logits"], -1)

        return Heads().eval()

    @staticmethod
    def selected() -> Any:
        """Return SSDLite with its selection by NMS: boxes, scores and labels of one picture."""
        import torchvision
        from torch import nn

        _seeded()
        network = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=6, score_thresh=0.2
        )

        class Selected(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, x: Any) -> Any:
                found = self.network([x[0]])[0]
                return found["boxes"], found["scores"], found["labels"]

        return Selected().eval()

    @staticmethod
    def pose() -> Any:
        """Return a keypoint network: a ResNet, three transposed convolutions, one map a joint."""
        import torchvision
        from torch import nn

        _seeded()
        body = list(torchvision.models.resnet18(weights=None).children())[:-2]
        up: list[nn.Module] = []
        for wide in (512, 128, 128):
            up += [nn.ConvTranspose2d(wide, 128, 4, 2, 1), nn.BatchNorm2d(128), nn.ReLU()]
        return nn.Sequential(*body, *up, nn.Conv2d(128, 17, 1)).eval()

    @staticmethod
    def faces() -> Any:
        """Return a detector of 2019: two levels, each with its own scores and boxes, laid flat."""
        import torch
        from torch import nn

        _seeded()

        def block(wide: int, to: int, stride: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(wide, wide, 3, stride, 1, groups=wide),
                nn.Conv2d(wide, to, 1),
                nn.PReLU(to),
            )

        class Faces(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem = nn.Sequential(nn.Conv2d(3, 24, 5, 2, 2), nn.ReLU())
                self.near = nn.Sequential(*(block(24, 24, 1) for _ in range(3)), block(24, 48, 2))
                self.far = nn.Sequential(block(48, 48, 1), block(48, 96, 2))
                self.heads = nn.ModuleList(
                    nn.ModuleList((nn.Conv2d(w, 2, 3, 1, 1), nn.Conv2d(w, 8, 3, 1, 1)))
                    for w in (48, 96)
                )

            def forward(self, x: Any) -> Any:
                near = self.near(self.stem(x))
                scores, boxes = [], []
                for level, (score, box) in zip((near, self.far(near)), self.heads, strict=True):
                    scores.append(score(level).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 1))
                    boxes.append(box(level).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4))
                return torch.cat(scores, 1).sigmoid(), torch.cat(boxes, 1)

        return Faces().eval()

    @staticmethod
    def larger() -> Any:
        """Return a network for super-resolution that ends in a pixel shuffle."""
        from torch import nn

        _seeded()
        return nn.Sequential(
            *(
                nn.Conv2d(1, 32, 5, padding=2),
                nn.Tanh(),
                nn.Conv2d(32, 32, 3, padding=1),
                nn.Tanh(),
            ),
            *(nn.Conv2d(32, 9, 3, padding=1), nn.PixelShuffle(3)),
        ).eval()

    @staticmethod
    def unet() -> Any:
        """Return a small U-Net with bilinear resizing and skips."""
        import torch
        from torch import nn

        _seeded()

        def block(wide: int, to: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(wide, to, 3, padding=1), nn.BatchNorm2d(to), nn.SiLU())

        class UNet(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.top, self.mid, self.low = block(3, 16), block(16, 32), block(32, 64)
                self.back, self.end = block(96, 32), block(48, 16)
                self.out = nn.Conv2d(16, 4, 1)
                self.pool = nn.MaxPool2d(2)
                self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

            def forward(self, x: Any) -> Any:
                top = self.top(x)
                mid = self.mid(self.pool(top))
                low = self.low(self.pool(mid))
                back = self.back(torch.cat([self.up(low), mid], 1))
                return self.out(self.end(torch.cat([self.up(back), top], 1)))

        return UNet().eval()

    @staticmethod
    def autoencoder() -> Any:
        """Return a convolutional autoencoder with a bottleneck of 32 numbers."""
        from torch import nn

        _seeded()
        return nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.GELU(), nn.Conv2d(16, 32, 3, 2, 1), nn.GELU()),
            *(nn.Flatten(), nn.Linear(1568, 32), nn.Linear(32, 1568), nn.Unflatten(1, (32, 7, 7))),
            *(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.GELU(), nn.ConvTranspose2d(16, 1, 4, 2, 1)),
        ).eval()

    @staticmethod
    def reader() -> Any:
        """Return a reader of text lines (CRNN): convolutions, then an LSTM in both directions."""
        from torch import nn

        _seeded()

        class Reader(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                layers: list[nn.Module] = []
                for wide, to, pool in ((1, 32, (2, 2)), (32, 64, (2, 2)), (64, 96, (2, 1))):
                    layers += [nn.Conv2d(wide, to, 3, padding=1), nn.BatchNorm2d(to), nn.ReLU()]
                    layers.append(nn.MaxPool2d(pool, pool))
                self.body = nn.Sequential(*layers, nn.Conv2d(96, 96, (4, 1)), nn.ReLU())
                self.lstm = nn.LSTM(96, 64, bidirectional=True, batch_first=True)
                self.out = nn.Linear(128, 37)

            def forward(self, x: Any) -> Any:
                steps = self.body(x).squeeze(2).permute(0, 2, 1)
                return self.out(self.lstm(steps)[0]).log_softmax(-1)

        return Reader().eval()


_DENSE = {"metric": "embedding", "max_drop": 0.02, "samples": 800}
CASES = (
    Case("digits", "CNN, trained", _digits, _digit_pictures, samples=800, quick=True),
    Case("resnet18", "timm", partial(_timm, "resnet18", 160), kinds(160)),
    Case("mobilenetv3", "timm", partial(_timm, "mobilenetv3_small_100", 224), kinds(224)),
    Case(
        "efficientnet-tf",
        "timm, padded in the graph",
        partial(_timm, "tf_efficientnet_lite0", 192),
        kinds(192),
    ),
    Case("convnext", "timm", partial(_timm, "convnext_atto", 160), kinds(160)),
    Case("vit", "timm", partial(_timm, "vit_tiny_patch16_224", 224), kinds(224)),
    Case(
        "swin",
        "timm",
        partial(_timm, "swin_tiny_patch4_window7_224", 224),
        kinds(224),
        samples=400,
    ),
    Case("mobilevit", "timm", partial(_timm, "mobilevit_xxs", 192), kinds(192)),
    Case("mixer", "timm", partial(_timm, "mixer_s32_224", 224), kinds(224)),
    Case("ghostnet", "timm", partial(_timm, "ghostnet_100", 160), kinds(160)),
    Case("shufflenet", "torchvision", partial(_torchvision, "shufflenet_v2_x0_5", 128), kinds(128)),
    Case("densenet", "torchvision", partial(_torchvision, "densenet121", 128), kinds(128)),
    Case(
        "lraspp",
        "segmentation",
        partial(_Outputs.segmenter, "lraspp_mobilenet_v3_large"),
        pictures(160),
        **_DENSE,
    ),
    Case(
        "deeplab",
        "segmentation",
        partial(_Outputs.segmenter, "deeplabv3_mobilenet_v3_large"),
        pictures(160),
        **_DENSE,
    ),
    Case(
        "ssdlite-heads",
        "detection",
        _Outputs.detector,
        pictures(320),
        metric="zoo_metrics.py:every_output",
        max_drop=0.02,
        samples=800,
        outputs=("boxes", "classes"),
    ),
    Case(
        "ssdlite",
        "detection with NMS",
        _Outputs.selected,
        pictures(320),
        metric="zoo_metrics.py:boxes",
        samples=400,
        outputs=("boxes", "scores", "labels"),
    ),
    Case(
        "faces",
        "detection, two levels",
        _Outputs.faces,
        pictures(96),
        metric="zoo_metrics.py:every_output",
        outputs=("scores", "boxes"),
        quick=True,
    ),
    Case("pose", "keypoints", _Outputs.pose, pictures(128), **_DENSE),
    Case("super-resolution", "dense", _Outputs.larger, pictures(48, 1), **_DENSE, quick=True),
    Case(
        "sizes",
        "dense, pictures of every size",
        _Outputs.larger,
        of_every_size((24, 24), (64, 64), 1),
        **_DENSE,
        open_axes={"x": {2: "high", 3: "wide"}, "y": {2: "higher", 3: "wider"}},
    ),
    Case("unet", "dense", _Outputs.unet, pictures(64), **_DENSE),
    Case("autoencoder", "dense", _Outputs.autoencoder, pictures(28, 1), **_DENSE),
    Case("reader", "OCR (CRNN)", _Outputs.reader, pictures(32, 1, wide=96), **_DENSE),
    Case(
        "widths",
        "OCR (CRNN), lines of every width",
        _Outputs.reader,
        of_every_size((32, 32), (32, 160), 1),
        **_DENSE,
        open_axes={"x": {3: "wide"}, "y": {1: "steps"}},
    ),
)
