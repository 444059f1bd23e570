"""Folders of Hugging Face: an ONNX file is read as it is, safetensors by transformers (`hugging-face`) or timm."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.extras import missing_extra
from hasten.core.model import Model
from hasten.core.silence import silenced
from hasten.core.tensors import Array
from hasten.errors import InputError, told, visible
from hasten.inputs.models import config_claims, frozen, onnx, sentence_transformers, timm_folders
from hasten.inputs.models.config_claims import CONFIG
from hasten.inputs.models.picture_sizes import picture_size
from hasten.inputs.models.sentence_transformers import SentenceModel
from hasten.inputs.pipeline.base import Pipeline, PostStep
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.entities import Entities
from hasten.inputs.pipeline.hugging_face import IMAGES, TOKENIZER, from_hugging_face
from hasten.inputs.pipeline.text import MAX_TOKENIZER_BYTES, Tokenize
from hasten.inputs.pipeline.written import read_json, read_text

_WRITES_TEXT = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "ForSpeechSeq2Seq")
_IN_ONE_PASS = ("ForObjectDetection", "ForAudioClassification", "Segmentation")
"""Ends of the names of encoders with decoders that answer in one pass all the same."""
_SLOW_TOKENIZERS = (
    *("*.model", "merges.txt", "vocab.*", "sentencepiece*", "spiece*"),
    *("tokenizer_config.json", "special_tokens_map.json"),
)
_CLASSIFIERS = ("ForAudioClassification", "ForImageClassification", "ForSequenceClassification")
_TAGGERS, _SCORES = "ForTokenClassification", "logits"
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_MAIN_INPUTS = ("input_ids", "pixel_values", "input_values", "input_features")
"""Inputs without which a model of texts and pictures, or of texts and sounds, may not run."""
_SHOWN = 5
"""Largest number of classes of a decision."""
_TRACED_TOKENS, _TRACED_SOUND = 16, 16_000


@dataclass(frozen=True)
class Folder:
    """A model's folder as `save_pretrained` writes it.

    Attributes:
        path: The folder.
        config: Content of its `config.json`.
        file: ONNX file in it; None where its weights are safetensors.
        trust_code: Whether Python code in the folder may run.
        sentence: Steps that sentence-transformers puts after the encoder; None for other folders.
    """

    path: Path
    config: Mapping[str, Any]
    file: Path | None
    trust_code: bool = False
    sentence: SentenceModel | None = None

    @property
    def architecture(self) -> str:
        """Name of the model's class; empty where the folder states none."""
        stated = self.config.get("architectures")
        return visible(str(stated[0])) if isinstance(stated, list) and stated else ""

    @cached_property
    def _stated(self) -> tuple[Pipeline | None, str]:
        """The pipeline that the folder states, and a note on one that can't be used."""
        if timm_folders.is_one(self.config):
            try:
                return timm_folders.pipeline(self.config), ""
            except InputError as error:
                return None, f"the bundle takes prepared arrays: {error}"
        text = self.path / TOKENIZER
        if not (self.path / IMAGES).is_file() and not text.is_file():
            slow = [file.name for name in _SLOW_TOKENIZERS for file in self.path.glob(name)]
            if slow:
                raise InputError(
                    f"{self.path} has a tokenizer that isn't supported ({slow[0]} without "
                    f"{TOKENIZER}): load it with transformers' AutoTokenizer and save it with "
                    "save_pretrained, which writes that file"
                )
            return None, ""
        if text.is_file() and len(json.dumps(read_text(text))) > MAX_TOKENIZER_BYTES:
            return None, (
                f"{text} is too large for a bundle, which has room for "
                f"{MAX_TOKENIZER_BYTES >> 20} MiB: the bundle takes tokens, not text"
            )
        try:
            found = from_hugging_face(self.path)
        except InputError as error:
            if text.is_file():
                raise
            return None, f"the bundle takes prepared arrays: {error}"
        steps = found.steps
        if self.sentence is not None:
            limited = self.sentence.limited
            steps = tuple(limited(s) if isinstance(s, Tokenize) else s for s in steps)
        return Pipeline(steps, self._after()), ""

    def _after(self) -> tuple[PostStep, ...]:
        """Return the step that names what a classifier, of samples or of tokens, finds by its folder's names."""
        labels = self.config.get("id2label")
        if not isinstance(labels, Mapping) or len(labels) < 2:
            return ()
        names = tuple(str(labels.get(str(number))) for number in range(len(labels)))
        one_of_them = self.config.get("problem_type") in (None, "single_label_classification")
        numbered = [f"LABEL_{number}" for number in range(len(names))]  # where nobody named them
        given = () if list(names) == numbered or "None" in names else names
        if self.architecture.endswith(_TAGGERS):
            if not given or not (self.path / TOKENIZER).is_file():
                return ()
            there = (
                [] if self.file is None else [one.name for one in onnx.read(self.file).graph.output]
            )
            several = len(there) > 1
            return () if several and _SCORES not in there else (Entities(given, _SCORES * several),)
        if not one_of_them or not self.architecture.endswith(_CLASSIFIERS):
            return ()
        return (TopK(min(_SHOWN, len(names)), given),)

    @property
    def pipeline(self) -> Pipeline | None:
        """Steps from a text, a picture or a sound to the model's inputs; None where none are known.

        Raises:
            InputError: the folder's tokenizer isn't known here, or can't be read.
        """
        return self._stated[0]

    @property
    def hasten_notes(self) -> tuple[str, ...]:
        """Notes on the folder for people, one line each."""
        own = self.sentence.note if self.sentence is not None else ""
        return tuple(filter(None, (self._stated[1], own)))

    def module(self) -> Any:
        """Load the weights into a module of transformers, or of timm for a folder of timm's.

        Raises:
            InputError: the library isn't installed, or the folder's model isn't one it can load.
        """
        if self.trust_code:
            return self._module()
        with config_claims.offline():
            return self._module()

    def _module(self) -> Any:
        """Load the weights."""
        if timm_folders.is_one(self.config):
            return timm_folders.load(self.path, self.config, trust_code=self.trust_code)
        self._check()
        try:
            import torch  # noqa: F401 - transformers needs it and says so late
            import transformers
        except ImportError as error:
            raise missing_extra(
                f"{self.path}, a Hugging Face folder without an ONNX file,", "hugging-face"
            ) from error
        kind = self._class(transformers)
        weights = config_claims.stored(self.path)
        if not self.trust_code:
            config_claims.check_alone(self.path, getattr(kind, "config_class", None))
            config_claims.check_counts(self.path, self.config, weights)
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
        if self.trust_code:
            options["trust_remote_code"] = True
        try:
            with silenced():
                if not self.trust_code:
                    with config_claims.few_parts(self.path, weights):
                        claimed = self._without_memory(kind, transformers)
                    config_claims.check_memory(self.path, claimed, weights)
                module, about = kind.from_pretrained(self.path, output_loading_info=True, **options)
                missing = sorted(about["missing_keys"])
                if missing and all(key.startswith("pooler.") for key in missing):
                    module = kind.from_pretrained(self.path, add_pooling_layer=False, **options)
                    missing = []
        except InputError:
            raise
        except Exception as error:  # transformers passes on any exception
            raise InputError(
                f"{self.path} can't be loaded by transformers {transformers.__version__}: {told(error)}"
            ) from error
        if missing:
            raise InputError(
                f"{self.path} lacks {len(missing)} weights of {self.architecture}, such as "
                f"{missing[0]}: save the whole model with save_pretrained"
            )
        return module.eval()

    def _without_memory(self, kind: Any, transformers: Any) -> Any:
        """Return the module as transformers makes it before it has weights: on the meta device."""
        import torch

        base = transformers.PreTrainedModel
        is_auto = not issubclass(kind, base)
        configuration = (is_auto and transformers.AutoConfig) or kind.config_class
        config = configuration.from_pretrained(self.path, local_files_only=True)
        with contextlib.ExitStack() as stack:
            for context in (base if is_auto else kind).get_init_context(
                torch.float32, False, False, False
            ):
                stack.enter_context(context)
            return kind.from_config(config) if is_auto else kind(config)

    def _check(self) -> None:
        """Check what can be checked before anything is loaded."""
        if self.config.get("auto_map") and not self.trust_code:
            raise InputError(
                f"{self.path} contains Python code of its own (auto_map in {CONFIG}), which "
                "isn't run: if you trust it, add trust_code=True"
            )
        if not self.trust_code:
            config_claims.check_places(self.path, self.config)
        name = self.architecture
        if not name:
            raise InputError(
                f"{self.path / CONFIG} doesn't name the model's architecture: add the name of its class, as in "
                '"architectures": ["BertForSequenceClassification"], or save the model with save_pretrained, which does'
            )
        in_turns = self.config.get("is_encoder_decoder") and not name.endswith(_IN_ONE_PASS)
        if name.endswith(_WRITES_TEXT) or in_turns:
            raise InputError(
                f"{self.path} is a {name}, which generates text token by token: hasten takes "
                "models that answer in one pass, such as encoders and classifiers"
            )
        if not any(self.path.glob("*.safetensors")):
            raise InputError(
                f"{self.path} has neither an ONNX file nor safetensors: load it in your own code "
                "and save it with save_pretrained, which writes safetensors"
            )

    def _class(self, transformers: Any) -> Any:
        """Return the class of the model: its own, or for code in the folder the one that loads it."""
        own = self.config.get("auto_map")
        if isinstance(own, Mapping) and self.trust_code:
            loaders = [name for name in own if name.startswith("AutoModel")]
            exact = [n for n in loaders if str(own[n]).endswith(f".{self.architecture}")]
            if loaders:
                return getattr(transformers, (exact or loaders)[0])
        if self.sentence is not None:
            return transformers.AutoModel  # the folder may name what the encoder was trained as
        kind = getattr(transformers, self.architecture, None)
        if kind is None:
            raise InputError(
                f"transformers {transformers.__version__} has no {self.architecture}, the "
                f"architecture of {self.path}: install a newer version"
            )
        is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
        if (
            not is_model and not hasattr(kind, "_backends") and not self.trust_code
        ):  # which one has for lack of a library
            raise InputError(
                f"{self.architecture}, the architecture of {self.path}, isn't a model of transformers "
                f"{transformers.__version__}"
            )
        return kind

    def _picture(self, known: Mapping[str, Any]) -> dict[str, Array]:
        """Return a sample of the input for pictures or videos; empty where nothing states their size."""
        try:
            pipeline = self.pipeline
        except InputError:  # that of its texts
            pipeline = None
        size = picture_size(self.path, known, pipeline)
        if size is None:
            return {}
        shape, settings = (known.get("num_channels", 3), *size), "num_channels and image_size"
        if "num_frames" in known:
            shape, settings = (known["num_frames"], *shape), f"num_frames, {settings}"
        bounded = config_claims.ones(self.path, shape, settings)
        # Of a picture of one color, a detector's places score alike, and rounding would choose among them.
        rng = np.random.default_rng(0)
        return {"pixel_values": rng.standard_normal(bounded.shape, np.float32)}

    def made_up(self, module: Any) -> dict[str, Array]:
        """Return one sample to export with, without an axis for the batch, where no data is given.

        Raises:
            InputError: nothing says what the model takes.
        """
        main, known = str(module.main_input_name), self.config
        if (shape := getattr(module, "hasten_sample", None)) is not None:
            return {main: config_claims.ones(self.path, shape, "input_size")}
        longest = known.get("max_position_embeddings")
        tokens = min(_TRACED_TOKENS, longest) if type(longest) is int and longest > 0 else None
        if main == "input_ids":
            texts = {
                name: np.ones(tokens or _TRACED_TOKENS, np.int64) for name in text_inputs(module)
            }
            beside = known.get("vision_config")  # of a model of texts and pictures
            if (
                isinstance(beside, Mapping)
                and "pixel_values" in inspect.signature(module.forward).parameters
            ):
                texts |= self._picture(beside)
            return texts
        if main == "pixel_values" and (picture := self._picture(known)):
            return picture
        if main == "input_values" and "num_mel_bins" in known and "max_length" in known:
            shape = (known["max_length"], known["num_mel_bins"])
            return {main: config_claims.ones(self.path, shape, "max_length and num_mel_bins")}
        positions = known.get("max_source_positions")
        if main == "input_features" and "num_mel_bins" in known and isinstance(positions, int):
            shape = (known["num_mel_bins"], 2 * positions)  # Whisper's encoder halves them
            settings = "num_mel_bins and twice the max_source_positions"
            return {main: config_claims.ones(self.path, shape, settings)}
        if main == "input_values":
            return {main: np.sin(np.arange(_TRACED_SOUND, dtype=np.float32))}
        advice = "give data="
        if main == "pixel_values":
            advice += f", or add image_size to it, or the {IMAGES} that the model was saved with"
        raise InputError(
            f"nothing in {self.path / CONFIG} says how large the input {main!r} is: {advice}"
        )


def read(path: Path, *, trust_code: bool = False) -> Folder | None:
    """Read a folder's configuration; None for a folder of another kind.

    Args:
        path: The folder.
        trust_code: Whether Python code in the folder may run.

    Raises:
        InputError: the configuration can't be read, or several ONNX files could be meant.
    """
    sentence = sentence_transformers.read(path)
    path = path if sentence is None else sentence.encoder
    if not (path / CONFIG).is_file():
        return None
    config = read_json(path / CONFIG)
    if not isinstance(config, dict):
        return None
    stated = {"architectures", "auto_map", "model_type"} & set(config)
    if not stated and not timm_folders.is_one(config):
        return None
    if not trust_code:
        folders = {path, path / "onnx", *(sentence.folders if sentence else ())}
        config_claims.check_links(sentence.folder if sentence else path, folders)
    return Folder(path, config, _onnx_file(path), trust_code, sentence)


def _onnx_file(path: Path) -> Path | None:
    """Return the ONNX file of a folder: the only one, or the one called model.onnx."""
    found = sorted([*path.glob("*.onnx"), *path.glob("onnx/*.onnx")])
    named = [file for file in found if file.name == "model.onnx"]
    if len(found) > 1 and len(named) != 1:
        shown = ", ".join(str(file.relative_to(path)) for file in found[:4])
        raise InputError(f"{path} has {len(found)} ONNX files ({shown}): give one of them")
    return next(iter(named or found), None)


def text_inputs(module: Any) -> tuple[str, ...]:
    """Return the inputs of a model of texts, in order, without kinds of texts where it has but one."""
    taken = inspect.signature(module.forward).parameters
    one = int(getattr(module.config, "type_vocab_size", 0) or 0) < 2
    return tuple(
        name for name in _TEXT_INPUTS if name in taken and not (one and name == "token_type_ids")
    )


def export(
    folder: Folder,
    module: Any,
    given: Mapping[str, Array],
    workdir: Path,
    further: Sequence[Mapping[str, Array]] = (),
) -> Model:
    """Export a module of transformers with an open batch and, of texts and sounds, an open length.

    If the length can't be open, it is the sample's, and the file's metadata says why under
    `hasten.length`.

    Args:
        folder: Folder that the module was loaded from.
        module: The module.
        given: One sample by input name, without an axis for the batch.
        workdir: Folder to write the ONNX file to.
        further: Samples of other shapes; dimensions in which these differ stay open.

    Raises:
        InputError: torch can't export it, or the file gives other answers.
    """
    from hasten.inputs.models import torch as frontend

    axes = {name: {1: "sequence"} for name in given if name in (*_TEXT_INPUTS, "input_values")}
    if "num_mel_bins" in folder.config:
        axes = {}
    why = ""
    if axes:
        try:
            model = frontend.export(module, given, workdir, axes=axes, further=further)
            if any("sequence" in spec.shape for spec in model.inputs):
                _check_lengths(model, module, given)
                return model
            why = frozen.reason(onnx.read(model.path), frozen.BATCH)
        except InputError as error:
            why = str(error)
    model = frontend.export(module, given, workdir, further=further)
    length = next((spec.shape[1] for spec in model.inputs if spec.name in axes), None)
    if isinstance(length, int):
        proto = onnx.read(model.path)
        frozen.note(proto, frozen.LENGTH, f"{length}: {why}")
        model.path.write_bytes(proto.SerializeToString())
    return model


def _check_lengths(model: Model, module: Any, given: Mapping[str, Array]) -> None:
    """Check that an exported file answers as its module at other lengths too.

    Raises:
        InputError: it doesn't, or it can't be run.
    """
    import onnxruntime
    import torch

    from hasten.inputs.models.torch import RELATIVE_TOLERANCE, flat_outputs

    session = onnxruntime.InferenceSession(str(model.path))
    longest = max(array.shape[0] for array in given.values())
    for length in sorted({max(1, longest // 2), max(1, longest - 1)}):
        short = {name: np.ascontiguousarray(array[None, :length]) for name, array in given.items()}
        try:
            with torch.no_grad():
                tensors = {name: torch.from_numpy(array) for name, array in short.items()}
                wanted = [one.numpy() for one in flat_outputs(module(**tensors)).values()]
        except Exception as error:  # a module may take one length alone
            raise InputError(f"the model can't run the length {length}: {told(error)}") from error
        try:
            answers = session.run(None, short)
        except Exception as error:  # the runtime raises exceptions of its own
            raise InputError(f"the exported model can't be run: {told(error)}") from error
        for own, other in zip(wanted, answers, strict=True):
            off = np.abs(own - other).max() if own.shape == other.shape else np.inf
            if not off <= RELATIVE_TOLERANCE * np.abs(own).max(initial=0):
                raise InputError(f"the exported model is off by {off:.3g} at the length {length}")


def load_file(folder: Folder, workdir: Path, custom_ops: Sequence[Path]) -> Model:
    """Load the ONNX file of a folder.

    Args:
        folder: The folder, which has one.
        workdir: Folder to write to.
        custom_ops: Libraries with the user's own operators.

    Raises:
        InputError: it can't be read, or lacks what comes after it in sentence-transformers.
    """
    assert folder.file is not None
    model = onnx.load(folder.file, custom_ops, workdir)
    return model if folder.sentence is None else folder.sentence.completed(model, workdir)


def load(
    folder: Folder,
    sample: Callable[[Any], Mapping[str, Array]],
    workdir: Path,
    *,
    keep_program: bool = False,
    further: Callable[[Sequence[str]], Sequence[Mapping[str, Array]]] = lambda names: (),
) -> Model:
    """Load a folder without an ONNX file, and export it.

    Args:
        folder: The folder.
        sample: Function from the module to one sample of its inputs.
        workdir: Folder to write to.
        keep_program: Whether to keep torch's exported program too.
        further: Function from the sample's input names to samples of other shapes.

    Raises:
        InputError: it can't be loaded or exported.
    """
    from hasten.inputs.models import torch as frontend

    module = folder.module()
    given = sample(module)
    try:
        with silenced():
            model = export(folder, module, given, workdir, further(tuple(given)))
    except frontend.NotRun as error:
        taken = inspect.signature(module.forward).parameters
        others = [name for name in _MAIN_INPUTS if name in taken and name not in given]
        if not others:
            raise
        raise InputError(
            f"{error}; it also takes {', '.join(others)}: give data with these"
        ) from error
    if folder.sentence is not None:
        return folder.sentence.completed(model, workdir)  # the program would lack the pooling
    if keep_program:
        kept = frontend.keep_program(module, given, workdir / "program.pt2")
        model = replace(model, program=kept)
    return model
