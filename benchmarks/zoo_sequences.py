"""The zoo's networks for sequences: recurrent ones, texts, audio, graphs; weights are random."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from zoo_cases import Arrays, Case, decided, normal, sentences, texts, waves


def _seeded() -> None:
    import torch

    torch.manual_seed(0)


def _one_step(rng: np.random.Generator, count: int) -> Arrays:
    return {
        "x": rng.standard_normal((count, 12), np.float32),
        "h": np.tanh(rng.standard_normal((count, 64), np.float32)),
    }


class _Networks:
    """Makers of networks; torch is imported when one is made."""

    @staticmethod
    def gru() -> Any:
        from torch import nn

        class Gru(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gru = nn.GRU(6, 64, batch_first=True)
                self.out = nn.Linear(64, 5)

            def forward(self, x: Any) -> Any:
                return self.out(self.gru(x)[0][:, -1])

        _seeded()
        return decided(Gru(), normal((50, 6)))

    @staticmethod
    def lstm() -> Any:
        """Return a forecaster: two LSTM layers, the next 12 values."""
        from torch import nn

        class Lstm(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lstm = nn.LSTM(4, 48, num_layers=2, batch_first=True)
                self.out = nn.Linear(48, 12)

            def forward(self, x: Any) -> Any:
                return self.out(self.lstm(x)[0][:, -1])

        _seeded()
        return Lstm().eval()

    @staticmethod
    def gru_step() -> Any:
        """Return a step of a GRU over a sensor's readings, with its state in and out."""
        from torch import nn

        class Step(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.cell = nn.GRUCell(12, 64)
                self.out = nn.Linear(64, 5)

            def forward(self, x: Any, h: Any) -> Any:
                h = self.cell(x, h)
                return self.out(h), h

        _seeded()
        return decided(Step(), _one_step, outputs=2)

    @staticmethod
    def tcn() -> Any:
        """Return dilated, causal convolutions over time, with residuals."""
        import torch
        from torch import nn

        class Tcn(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = nn.Conv1d(8, 32, 1)
                self.layers = nn.ModuleList(nn.Conv1d(32, 32, 3, dilation=2**i) for i in range(5))
                self.out = nn.Linear(32, 4)

            def forward(self, x: Any) -> Any:
                x = self.first(x)
                for i, layer in enumerate(self.layers):
                    x = x + torch.relu(layer(nn.functional.pad(x, (2 * 2**i, 0))))
                return self.out(x[:, :, -1])

        _seeded()
        return decided(Tcn(), normal((8, 128)))

    @staticmethod
    def gru_cnn() -> Any:
        """Return a CNN with a GRU on top, as keyword spotters are."""
        from torch import nn

        class GruCnn(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Sequential(
                    *(nn.Conv2d(1, 16, (5, 3), (2, 1), (2, 1)), nn.ReLU()),
                    *(nn.Conv2d(16, 16, 3, (2, 2), 1), nn.ReLU()),
                )
                self.gru = nn.GRU(160, 64, batch_first=True)
                self.out = nn.Linear(64, 12)

            def forward(self, x: Any) -> Any:
                found = self.body(x).permute(0, 3, 1, 2).flatten(2)
                return self.out(self.gru(found)[1][0])

        _seeded()
        return decided(GruCnn(), normal((1, 40, 60)))

    @staticmethod
    def bytes_cnn() -> Any:
        """Return a classifier of bytes: an embedding, convolutions, the highest of each."""
        import torch
        from torch import nn

        class Bytes(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed = nn.Embedding(256, 24)
                self.convs = nn.ModuleList(nn.Conv1d(24, 32, size) for size in (3, 5, 7))
                self.out = nn.Linear(96, 8)

            def forward(self, x: Any) -> Any:
                found = self.embed(x).transpose(1, 2)
                return self.out(torch.cat([conv(found).relu().amax(2) for conv in self.convs], 1))

        _seeded()
        return decided(Bytes(), _byte_texts)

    @staticmethod
    def masked_text() -> Any:
        """Return a text classifier: embeddings, one layer of attention, the mean over the mask."""
        import torch
        from torch import nn

        class Text(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed = nn.Embedding(2000, 64)
                self.qkv = nn.Linear(64, 192)
                self.out = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 6))

            def forward(self, input_ids: Any, attention_mask: Any) -> Any:
                x = self.embed(input_ids)
                q, k, v = self.qkv(x).chunk(3, -1)
                hidden = (attention_mask == 0)[:, None, :]
                scores = (q @ k.transpose(1, 2) / 8).masked_fill(hidden, float("-inf"))
                x = x + torch.softmax(scores, -1) @ v
                there = attention_mask[:, :, None].to(x.dtype)
                return self.out((x * there).sum(1) / there.sum(1))

        _seeded()
        return decided(Text(), texts(48, 2000))

    @staticmethod
    def graph() -> Any:
        """Return a network over graphs: messages are gathered along edges, added at the ends."""
        import torch
        from torch import nn

        class Graph(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = nn.Linear(8, 32)
                self.messages = nn.ModuleList(nn.Linear(64, 32) for _ in range(3))
                self.out = nn.Linear(32, 4)

            def forward(self, x: Any, source: Any, target: Any) -> Any:
                x = torch.relu(self.first(x))
                source = source[:, :, None].expand(-1, -1, 32)
                target = target[:, :, None].expand(-1, -1, 32)
                for layer in self.messages:
                    ends = torch.cat([torch.gather(x, 1, source), torch.gather(x, 1, target)], 2)
                    x = x.scatter_add(1, target, torch.relu(layer(ends)) / 8)
                return self.out(x.mean(1))

        _seeded()
        return decided(Graph(), _graphs)

    @staticmethod
    def mel() -> Any:
        """Return a mel front end whose Fourier transform is a convolution, then a CNN."""
        from torch import nn

        class Mel(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                angle = 2 * np.pi * np.outer(np.arange(129), np.arange(256)) / 256
                window = np.hanning(256)
                waves_ = np.concatenate([np.cos(angle), np.sin(angle)]) * window
                self.fourier = nn.Conv1d(1, 258, 256, 128, bias=False)
                self.fourier.weight.data = _tensor(waves_[:, None])
                self.register_buffer("bands", _tensor(_mel_bands(40, 129)))
                self.body = _spectrum_cnn()

            def forward(self, x: Any) -> Any:
                real, imaginary = self.fourier(x[:, None]).chunk(2, 1)
                power = real * real + imaginary * imaginary
                return self.body((self.bands @ power + 1e-5).log()[:, None])

        _seeded()
        return decided(Mel(), waves(8000))

    @staticmethod
    def stft() -> Any:
        """Return the same by torch's own STFT, which exporters make an operator of."""
        import torch
        from torch import nn

        class Stft(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("window", torch.hann_window(256))
                self.register_buffer("bands", _tensor(_mel_bands(40, 129)))
                self.body = _spectrum_cnn()

            def forward(self, x: Any) -> Any:
                found = torch.stft(
                    x, 256, 128, window=self.window, center=False, return_complex=True
                )
                power = torch.view_as_real(found).square().sum(-1)
                return self.body((self.bands @ power + 1e-5).log()[:, None])

        _seeded()
        return decided(Stft(), waves(8000))

    @staticmethod
    def recommender() -> Any:
        """Return a scorer of clicks: embedding tables, crossed, and an MLP."""
        import torch
        from torch import nn

        class Recommender(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.tables = nn.ModuleList(nn.Embedding(5000, 16) for _ in range(8))
                self.dense = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 16))
                self.top = nn.Sequential(nn.Linear(97, 64), nn.ReLU(), nn.Linear(64, 2))

            def forward(self, x: Any, ids: Any) -> Any:
                rows = [table(ids[:, i]) for i, table in enumerate(self.tables)]
                every = torch.stack([self.dense(x), *rows], 1)
                crossed = (every @ every.transpose(1, 2)).flatten(1)
                return self.top(torch.cat([every[:, 0], crossed], 1))

        _seeded()
        return decided(Recommender(), _clicks)


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.tensor(array, dtype=torch.float32)


def _mel_bands(bands: int, bins: int) -> np.ndarray:
    """Return triangles that widen with the frequency, `(bands, bins)`."""
    edges = np.linspace(0, np.log1p(bins), bands + 2)
    edges = np.expm1(edges)
    at = np.arange(bins)[None]
    low, mid, high = (edges[i : i + bands, None] for i in range(3))
    return np.clip(np.minimum((at - low) / (mid - low), (high - at) / (high - mid)), 0, None)


def _spectrum_cnn() -> Any:
    from torch import nn

    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


def _byte_texts(rng: np.random.Generator, count: int) -> Arrays:
    return {"x": texts(120, 256, mask=False)(rng, count)["input_ids"]}


def _graphs(rng: np.random.Generator, count: int) -> Arrays:
    """Return graphs of 40 nodes and 120 edges."""
    source, target = rng.integers(0, 40, (2, count, 120))
    nodes = rng.standard_normal((count, 40, 8), np.float32)
    return {"x": nodes, "source": source, "target": target}


def _clicks(rng: np.random.Generator, count: int) -> Arrays:
    ids = (rng.zipf(1.2, (count, 8)) - 1) % 5000
    return {"x": rng.standard_normal((count, 13), np.float32), "ids": ids}


_SMALL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}


def _encoder(kind: str, head: str = "Model", **settings: Any) -> Any:
    """Return an encoder of Hugging Face from a config: what it pools, or the scores of its head."""
    import transformers
    from torch import nn

    _seeded()
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=4000, attn_implementation="eager", **settings
    )
    network = getattr(transformers, f"{kind}{head}")(config).eval()

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            found = self.network(input_ids=input_ids, attention_mask=attention_mask)
            if head != "Model":
                return found.logits
            there = attention_mask[:, :, None].to(found.last_hidden_state.dtype)
            return (found.last_hidden_state * there).sum(1) / there.sum(1)

    return Encoder().eval()


def _classifier(kind: str, length: int, **settings: Any) -> Any:
    network = _encoder(kind, "ForSequenceClassification", num_labels=5, **settings)
    return decided(network, texts(length, 4000))


def _heard(kind: str, **settings: Any) -> Any:
    """Return a classifier of sounds of Hugging Face from a config."""
    import transformers
    from torch import nn

    _seeded()
    config = getattr(transformers, f"{kind}Config")(
        attn_implementation="eager", num_labels=8, **settings
    )
    network = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()

    class Heard(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any) -> Any:
            return self.network(x).logits

    return decided(Heard(), waves(8000))


_VALUES = {"metric": "embedding", "max_drop": 0.02}
_GRU = 50 * 3 * 64 * (6 + 64) + 64 * 5
_LSTM = 50 * 4 * 48 * (4 + 48 + 48 + 48) + 48 * 12
CASES = (
    Case("gru", "recurrent", _Networks.gru, normal((50, 6)), multiplications=_GRU, quick=True),
    Case(
        "lstm",
        "recurrent",
        _Networks.lstm,
        normal((50, 4)),
        **_VALUES,
        multiplications=_LSTM,
        quick=True,
    ),
    Case(
        "gru-steps",
        "recurrent, its state goes around",
        _Networks.gru_step,
        normal((20, 12)),
        outputs=("y", "next_h"),
        states={"h": ("next_h", (64,))},
        multiplications=3 * 64 * (12 + 64) + 64 * 5,
    ),
    Case("tcn", "convolutions over time", _Networks.tcn, normal((8, 128)), quick=True),
    Case("gru-cnn", "keyword spotter", _Networks.gru_cnn, normal((1, 40, 60))),
    Case("bytes", "text classifier of bytes", _Networks.bytes_cnn, _byte_texts),
    Case(
        "masked-text",
        "text classifier with a mask",
        _Networks.masked_text,
        texts(48, 2000),
        quick=True,
    ),
    Case(
        "lengths",
        "text classifier, texts of every length",
        _Networks.masked_text,
        sentences(3, 48, 2000),
        open_axes={"input_ids": {1: "length"}, "attention_mask": {1: "length"}},
    ),
    Case("graph", "gather and scatter", _Networks.graph, _graphs, quick=True),
    Case("mel", "audio front end and CNN", _Networks.mel, waves(8000)),
    Case("stft", "audio front end and CNN", _Networks.stft, waves(8000)),
    Case("recommender", "embedding tables", _Networks.recommender, _clicks),
    Case(
        "bert",
        "Hugging Face, sentences",
        partial(_encoder, "Bert", **_SMALL, intermediate_size=512),
        texts(64, 4000),
        **_VALUES,
    ),
    Case(
        "distilbert",
        "Hugging Face, classifier",
        partial(_classifier, "DistilBert", 64, dim=128, n_layers=3, n_heads=4, hidden_dim=512),
        texts(64, 4000),
    ),
    Case(
        "albert",
        "Hugging Face, tokens",
        partial(
            _encoder,
            "Albert",
            "ForTokenClassification",
            **_SMALL,
            embedding_size=64,
            intermediate_size=512,
            num_labels=9,
        ),
        texts(48, 4000),
        **_VALUES,
    ),
    Case(
        "roberta",
        "Hugging Face, reranker",
        partial(_classifier, "Roberta", 96, **_SMALL, intermediate_size=512, pad_token_id=0),
        texts(96, 4000),
    ),
    Case(
        "deberta",
        "Hugging Face, classifier",
        partial(
            _classifier,
            "DebertaV2",
            48,
            **_SMALL,
            intermediate_size=512,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
        ),
        texts(48, 4000),
    ),
    Case(
        "wav2vec2",
        "Hugging Face, sounds",
        partial(
            _heard,
            "Wav2Vec2",
            **_SMALL,
            intermediate_size=512,
            conv_dim=[64] * 7,
            num_conv_pos_embeddings=32,
            classifier_proj_size=64,
        ),
        waves(8000),
        samples=400,
    ),
)
