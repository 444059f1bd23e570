"""Check inputs against a real `hasten serve`, while another client asks it and its memory is watched."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import onnx
from fuzz.isolated import Outcome, peak_kib, reset_peak
from fuzz.open_lengths import bundles_of_lengths
from fuzz.other import MODEL, NUMBERS, Board
from fuzz.surface import Finding, Surface, checked
from tests.support import chains, watched
from tests.support.bundles import forge
from tests.support.models import COLOUR, COLOURS
from tests.support.servers import ServerProcess, bundle_of

from hasten.core.records import to_record
from hasten.core.tensors import Array
from hasten.inputs.metrics.brier import Brier
from hasten.inputs.pipeline.audio import DecodeAudio, FitLength, LogMel
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import image_pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.text import Tokenize
from hasten.testing import models

MOST_WAIT_S = 0.05
"""Longest that another client may wait because of one input."""
MOST_KIB = 64 << 10
"""Most memory that the server may take for one input."""
REGIONS = "/hasten-fuzz-"
"""Begin of the names of shared memory that clients may register; the object "a" is there."""
_TOGETHER = 16
"""Inputs between two looks at the other client and at the memory."""
_AGAIN = 5
_PATIENCE_S = 120.0
_SOUND = """{} (float[batch, 8, 100] mels) => (float[batch, 8, 100] y) {{ y = Relu(mels) }}"""
_WIDE = """<ir_version: 8, opset_import: ["" : 17]>
    wide (float[1, 4] x) => (float[1, 524288] y) <int64[2] times = {1, 131072}> { y = Tile(x, times) }"""
_TEXT = """text (int64[batch, 8] input_ids, int64[batch, 8] attention_mask) => (float[batch, 8] y) {
    seen = Mul(input_ids, attention_mask)
    y = Cast <to = 1> (seen) }"""
_ROW = """row (float[batch, 4] x) => (float[batch, 4] y) <float zero = {0.0}> {
    missing = IsNaN(x)
    y = Where(missing, zero, x) }"""
HEADS = 200
"""Outputs of the model `heads`, of 2,048 numbers each."""
_HEADS = f"""heads (float[batch, 4] x) => ({", ".join(f"float[batch, 2048] y{at}" for at in range(HEADS))})
    <int64[2] times = {{1, 512}}> {{ {" ".join(f"y{at} = Tile(x, times)" for at in range(HEADS))} }}"""
COLUMNS = ("age", "income", "years", "color")
"""Columns of the model of rows; the last takes words."""
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "##s", "mat")
"""Vocabulary of the model of texts."""
LONGEST = 500_000
"""Numbers that the model `long` takes, which is a megabyte of JSON at least."""
_LONG = f"""long (float[1, {LONGEST}] x) => (float[1, 1] y) {{ y = ReduceMax <axes = [1]> (x) }}"""
WATCHED = ("watched", "probable")
"""Models whose answers are all audited, and whose labels are a class and a probability."""
_TINY = """tiny (float[batch, 4] x) => (float[batch, 4] y) { y = Relu(x) }"""


def bundles(folder: Path) -> list[Path | str]:
    """Write what is served: `tiny`, `two_inputs`, models of pictures and sounds, and the chain `squares`.

    `wide` answers four numbers with half a million, and `long` takes as many. `heads` has many outputs. The answers of
    `WATCHED` are labelled. The inputs of `MODELS` in `fuzz.open_lengths` have open lengths.
    """
    two = models.two_inputs(folder)
    request: dict[str, Array] = {
        "features": np.ones((1, 8), np.float32),
        "ids": np.ones((1, 3), np.int64),
    }
    return [
        bundle_of(folder, models.write(folder / f"{MODEL}.onnx", _TINY, {})),
        bundle_of(folder, two, requests=[request]),
        classifier(folder, "colour", 8),
        classifier(folder, "large", 512),
        sounds(folder, "sound", (FitLength(16_000),)),
        sounds(folder, "uncut"),
        bundle_of(folder, wide(folder)),
        bundle_of(folder, models.write(folder / "long.onnx", _LONG, {})),
        bundle_of(folder, models.write(folder / "heads.onnx", _HEADS, {})),
        texts(folder),
        rows(folder),
        *audited(folder),
        *bundles_of_lengths(folder),
        f"squares={chains.detector(folder)}+crop+{chains.classifier(folder, 'reader')}",
    ]


def wide(folder: Path) -> Path:
    """Write the model whose answers are large."""
    onnx.save(onnx.parser.parse_model(_WIDE), folder / "wide.onnx")
    return folder / "wide.onnx"


def classifier(folder: Path, name: str, side: int) -> Path:
    """Write the bundle of a model of pictures of a side, in pixels."""
    pipeline = Pipeline(image_pipeline(side).steps, (TopK(1, COLOURS, softmax=False),))
    text = COLOUR.replace("8, 8", f"{side}, {side}")
    return bundle_of(folder, models.write(folder / f"{name}.onnx", text, {}), pipeline=pipeline)


def sounds(folder: Path, name: str, cut: tuple[FitLength, ...] = ()) -> Path:
    """Write the bundle of a model of sounds, whose pipeline may cut them."""
    model = models.write(folder / f"{name}.onnx", _SOUND.format(name), {})
    return bundle_of(folder, model, pipeline=Pipeline((DecodeAudio(), *cut, LogMel(mels=8))))


def texts(folder: Path) -> Path:
    """Write the bundle of a model of texts, which pads them to eight tokens."""
    model = models.write(folder / "text.onnx", _TEXT, {})
    pipeline = Pipeline((Tokenize(tokenizer(), 8),), (TopK(1, softmax=False),))
    return bundle_of(folder, model, pipeline=pipeline)


def tokenizer() -> str:
    """Return the tokenizer.json of a WordPiece tokenizer that brackets texts as BERT does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    numbers = {word: number for number, word in enumerate(WORDS)}
    built = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer()
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made: str = built.to_str()
    return made


def rows(folder: Path) -> Path:
    """Write the bundle of a model of table rows, whose last column takes words."""
    model = models.write(folder / "row.onnx", _ROW, {})
    row = Row(COLUMNS, missing="nan", words=((COLUMNS[-1], ("red", "green")),))
    return bundle_of(folder, model, pipeline=Pipeline((row,), (TopK(1, softmax=False),)))


def audited(folder: Path) -> list[Path]:
    """Write the bundles of `WATCHED`."""
    made = [watched.certified(folder / name, name, guard="lost", max_drop=0.2) for name in WATCHED]
    forge(made[1], lambda record: record.update(metric=to_record(Brier())))
    return made


class Running:
    """A server that runs, and the other client.

    Args:
        folder: Folder for the bundles and the other client's numbers.
        watched: Whether there is another client, which keeps a core busy.

    Attributes:
        server: The server's processes.
    """

    def __init__(self, folder: Path, watched: bool = True) -> None:
        self._folder, self._watched = folder, watched
        self._bundles = bundles(folder)
        self._other: subprocess.Popen[bytes] | None = None
        self._board: Board
        self.server: ServerProcess
        self._pid = 0
        self._own_kib: dict[str, int] = {}
        """Surface -> largest size of the process while requests of its models' own data were answered."""
        self._shared = Path("/dev/shm") / f"{REGIONS}a".lstrip("/")

    def start(self) -> None:
        """Start the server, and the other client; both anew where they run."""
        self.stop()
        part = self._shared.with_name(f"{self._shared.name}.{os.getpid()}")
        part.write_bytes(bytes(range(256)) * 16)
        part.replace(self._shared)  # never cut short: another fuzzer's server may have it mapped
        words = ("--grpc", "0", "--shared-memory", f"{REGIONS}.*", "--compiled", "off")
        audits = ("--shadow", "1", "--monitor-state", self._folder / "monitor")
        self.server = ServerProcess(*self._bundles, *words, *audits).__enter__()
        self._pid, self._own_kib = self.server.serving_pid(), {}
        if not self._watched:
            return
        file = self._folder / "waits"
        file.write_bytes(bytes(NUMBERS.size))
        self._board = Board(file)
        command = [sys.executable, "-m", "fuzz.other", str(self.server.http_port), str(file)]
        self._other = subprocess.Popen(command, cwd=Path(__file__).parents[1])
        self.settle(64)

    def stop(self) -> None:
        """End both."""
        if self._other is not None:
            self._other.kill()
            self._other.wait()
            self._other = None
        if self._pid:
            self._pid = 0
            self.server.__exit__()
            self._shared.unlink(missing_ok=True)

    def settle(self, answers: int = 2) -> None:
        """Wait until the other client has had so many answers more, and one that it asked for after this."""
        goal, end_s = self._board.answers + answers, time.monotonic() + _PATIENCE_S
        while self._board.answers < goal:
            if time.monotonic() > end_s:
                raise TimeoutError("the other client had no answer")
            time.sleep(0.0005)

    def own_kib(self, surface: Served) -> int:
        """Return how large the process was while it answered requests of a surface's models' own data; 0 without any."""
        if surface.name not in self._own_kib:
            own = surface.own()
            reset_peak(self._pid)
            for data in own:
                surface.check(data)
            self._own_kib[surface.name] = peak_kib(self._pid) if own else 0
        return self._own_kib[surface.name]

    @contextlib.contextmanager
    def watched(self, surface: Served) -> Iterator[Effect]:
        """Measure what inputs do to the other client, and to the memory beyond what the models' own data takes."""
        effect, own_kib = Effect(), self.own_kib(surface)
        wrong = self._board.wrong
        self._board.longest_s(forget=True)
        before_kib = max(reset_peak(self._pid), own_kib)
        yield effect
        self.settle()
        effect.wait_s = self._board.longest_s()
        if self.died:
            effect.died = f"the process that serves died:\n{self.server.errors[-3000:]}"
        else:
            effect.kib = max(0, peak_kib(self._pid) - before_kib)
        if self._board.wrong > wrong:
            effect.died = effect.died or "the other client got a wrong answer, or none"

    @property
    def died(self) -> bool:
        """Whether the process that served at the start is gone."""
        try:
            return self.server.serving_pid() != self._pid
        except (OSError, IndexError):
            return True

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Effect:
    """What inputs did to others.

    Attributes:
        wait_s: Longest wait of the other client, in seconds.
        kib: Growth of the server's memory at its peak, in KiB.
        died: Why the server is no longer sound; "" if it is.
    """

    def __init__(self) -> None:
        self.wait_s, self.kib, self.died = 0.0, 0, ""


class Served(Surface):
    """A surface of a server.

    Attributes:
        running: The server; set before an input is checked.
    """

    served = True
    running: Running

    def own(self) -> list[bytes]:
        """Return requests of its models' own data, whose memory an input may take as well; none if that is little."""
        return []


def attack(surface: Served, inputs: Sequence[bytes]) -> Outcome:
    """Check inputs; those beside which another client waited, or memory grew, are sent again alone."""
    outcome, running = Outcome(), surface.running
    for place in range(0, len(inputs), _TOGETHER):
        batch = inputs[place : place + _TOGETHER]
        with running.watched(surface) as effect:
            for data in batch:
                _count(outcome, surface, data)
        if effect.died or effect.wait_s > MOST_WAIT_S or effect.kib > MOST_KIB:
            _attribute(outcome, surface, batch)
            if effect.died and all(each.kind != "crash" for each in outcome.findings):
                why = f"{effect.died}\none of the {len(batch)} inputs up to this one did it, and none alone"
                outcome.findings.append(Finding(surface.name, batch[-1], "crash", why))
        else:
            _keep(outcome, effect.wait_s, effect.kib)
    return outcome


def _count(outcome: Outcome, surface: Served, data: bytes) -> None:
    word, why = checked(surface, data)
    outcome.counts[word] += 1
    if why:
        log = surface.running.server.errors[-2000:]
        why = f"the server's log ends with:\n{log}\n{why}" if log else why
        outcome.findings.append(Finding(surface.name, data, "fault", why))


def _attribute(outcome: Outcome, surface: Served, batch: Sequence[bytes]) -> None:
    """Send inputs again, each alone; what one does each time is a finding.

    The machine is shared, so the shortest wait of several counts; so does the least memory, each time of a
    fresh server, since a process keeps what it once took.
    """
    running = surface.running
    if running.died:
        running.start()
    for data in batch:
        wait_s, kib = _alone(surface, data, outcome)
        for _ in range(_AGAIN - 1):
            if wait_s <= MOST_WAIT_S:
                break
            wait_s = min(wait_s, _alone(surface, data, outcome)[0])
        for _ in range(2):
            if kib <= MOST_KIB:
                break
            running.start()
            kib = min(kib, _alone(surface, data, outcome)[1])
        _keep(outcome, wait_s, kib)
        if wait_s > MOST_WAIT_S:
            why = f"another client waited {1000 * wait_s:.0f} ms\nanother client waited"
            outcome.findings.append(Finding(surface.name, data, "wait", why))
        if kib > MOST_KIB:
            why = f"the server took {kib >> 10} MiB more\nthe server took memory"
            outcome.findings.append(Finding(surface.name, data, "memory", why))


def _alone(surface: Served, data: bytes, outcome: Outcome) -> tuple[float, int]:
    running = surface.running
    with running.watched(surface) as effect:
        checked(surface, data)
    if effect.died:
        outcome.findings.append(Finding(surface.name, data, "crash", effect.died))
        running.start()
    return effect.wait_s, effect.kib


def _keep(outcome: Outcome, wait_s: float, kib: int) -> None:
    outcome.most_s, outcome.most_kib = max(outcome.most_s, wait_s), max(outcome.most_kib, kib)
