"""Load and save plain transformers folders, and never leave a layer randomly initialised in silence.

A folder saved here is an ordinary transformers directory (safetensors, tokenizer, config) with one file more,
``jieyue.json``: the task that it was trained for, its settings and the version. Plain ``AutoModel…`` and ``AutoTokenizer``
load the folder without us.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from jieyue.errors import InputError, near_file
from jieyue.record import RECORD, read_record
from jieyue.report import write_whole

from .activations import register_config
from .attention import FIELD, register_attention, restore_attention
from .finite import check_finite
from .preset_sizes import CLASSIC_PRESETS, PRESETS
from .saved_attention import LOAD_ALONE
from .span import is_span_config, span_class, span_config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "HEADS",
    "RECORD",
    "check_name",
    "check_own_attention",
    "check_tokenizer",
    "head_of",
    "load",
    "load_config",
    "load_model",
    "load_tokenizer",
    "model_from_config",
    "quiet",
    "read_record",
    "register_names",
    "save",
]

SAVED = "saved"  # the head that a checkpoint was saved with
HEADS = {
    None: "AutoModel",
    "masked-lm": "AutoModelForMaskedLM",
    "causal-lm": "AutoModelForCausalLM",
    "sequence-to-sequence": "AutoModelForSeq2SeqLM",
    "classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "span": "AutoModelForQuestionAnswering",  # or what stands for it, see hf.span
    "prefix": "AutoModelForMaskedLM",  # a masked LM that writes, see hf.prefix
}


def quiet() -> None:
    """Silences transformers' own progress bars and load tables; ours say what matters."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load(name: str | Path, head: str | None = SAVED, *, new_head: bool = False) -> tuple[Any, Any]:
    """Model and tokenizer from a folder or a hub name, in evaluation mode, on the CPU, in the checkpoint's dtype.

    A folder that was saved with our attention or activations (``use``) comes back with them.

    ``name``: the folder or hub name. ``head``: one of ``HEADS``; "saved" = the head that the checkpoint was saved with, None = the bare
    model. ``new_head=True`` permits a head that the checkpoint lacks to start from random weights;
    otherwise weights that are missing or of another shape raise ``InputError`` with their list, as do folders that are not
    transformers models, and weights that are no finite numbers. Only safetensors and ``weights_only``
    archives are read, and no code from the folder is run.
    """
    head = head_of(name) if head == SAVED else head
    model, tokenizer = load_model(name, head, new_head=new_head), load_tokenizer(name)
    check_tokenizer(name, tokenizer, model)
    return model, tokenizer


def check_tokenizer(name: str | Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Refuses a tokenizer whose tokens the model has no embedding for: one of them would be an index error much later."""
    known = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if known is not None and len(tokenizer) > known:
        found = f"a tokenizer of {len(tokenizer)} tokens and a model of {known}"
        do = "take the tokenizer that the model was trained with, or resize the model's embeddings and save both"
        raise InputError(f"load({str(name)!r})", found, "no more tokens than the model has embeddings", do)


def load_model(
    name: str | Path,
    head: str | None = "masked-lm",
    *,
    new_head: bool = False,
    config: PretrainedConfig | None = None,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """The model alone; see ``load``. ``config``: in place of the folder's own, such as one with other labels.
    ``quantization``: in which layers are rounded as they are read.

    With ``new_head`` a head of another shape starts anew as well.
    """
    import transformers

    if head not in HEADS:
        raise InputError(f"load(head={head!r})", repr(head), f"one of {', '.join(map(repr, HEADS))}")
    check_name(name)
    try:
        with _silenced():
            own = register_names(transformers.AutoConfig.from_pretrained(str(name), trust_remote_code=False))
            if head == "span":
                config = span_config(own if config is None else config)
            if config is None and getattr(own, FIELD, None):
                config = own  # its attention may be one that only our loading knows
            options: dict[str, Any] = {} if config is None else {"config": config}
            if quantization is not None:
                options |= {"quantization_config": quantization, "device_map": {"": "cpu"}}
            model, found = getattr(transformers, _class_of(head, own)).from_pretrained(
                str(name), output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **options
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        pointer = _lfs_pointer(name)
        if pointer is not None:
            found = f"{pointer.name} that is a Git LFS pointer of {pointer.stat().st_size} bytes"
            raise InputError(f"load({str(name)!r})", found, "the weights", "git lfs pull") from error
        raise InputError(
            f"load({str(name)!r}): {_place(name)}cannot be loaded as {HEADS[head]}: {_first_line(error)}"
        ) from error
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found["mismatched_keys"])
    if new_head:
        mismatched = [key for key in mismatched if key.startswith(model.base_model_prefix + ".")]
    missing = sorted(found["missing_keys"])
    inside = [key for key in missing if _is_inside(model, key)]
    unused = sorted(key for key in found["unexpected_keys"] if _is_inside(model, key))
    if unused:
        raise InputError(
            f"load({str(name)!r}): the checkpoint has weights that a {type(model).__name__} of its configuration has no place for: "
            f"{_some(unused)}; expected a config.json that fits the weights"
        )
    if mismatched or inside or (missing and not new_head):
        kind = "weights of another shape" if mismatched else "no weights"
        listed = mismatched or inside or missing
        raise InputError(
            f"load({str(name)!r}): the checkpoint has {kind} for {_some(listed)}; they would be random in a {HEADS[head]}"
            + ("" if mismatched or inside else "; allow that with new_head (--new-head) and train it")
        )
    check_finite(model.named_parameters(), f"load({str(name)!r})")
    if model.config.model_type == "nezha":
        _know_separator(model, name)
    return _restored(model, head).eval()


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer alone; see ``load``."""
    from transformers import AutoTokenizer

    check_name(name)
    no_vocabulary = f"load({str(name)!r}): found no vocabulary, expected tokenizer.json or vocab.txt in the folder"
    try:
        with _silenced():
            tokenizer = AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        files = [*Path(name).glob("*token*"), *Path(name).glob("vocab*"), *Path(name).glob("*.model")]
        if Path(name).is_dir() and not files:
            raise InputError(no_vocabulary) from error
        raise InputError(f"load({str(name)!r}): no tokenizer could be loaded: {_first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes an empty one where no file is found
        raise InputError(no_vocabulary)
    return tokenizer


def load_config(name: str | Path) -> PretrainedConfig:
    """The configuration alone, no weight read; see ``load``."""
    from transformers import AutoConfig

    check_name(name)
    try:
        return AutoConfig.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"load({str(name)!r}): {_place(name)}no configuration could be loaded: {_first_line(error)}"
        ) from error


def model_from_config(config: Any, head: str | None = "masked-lm") -> PreTrainedModel:
    """A model of a copy of this configuration with fresh weights; under fake tensors it allocates nothing."""
    import transformers

    try:
        own = register_names(copy.deepcopy(config))
        own = span_config(own) if head == "span" else own
        model: PreTrainedModel = getattr(transformers, _class_of(head, own)).from_config(own)
    except ValueError as error:
        raise InputError(f"{type(config).__name__}: there is no {HEADS[head]} of it: {_first_line(error)}") from error
    return _restored(model, head)


def _lfs_pointer(name: str | Path) -> Path | None:
    """A file of weights in the folder that only says where its content is kept."""
    weights = [path for kind in ("*.safetensors", "*.bin") for path in sorted(Path(name).glob(kind))]
    small = (path for path in weights if path.stat().st_size < 1024)
    return next((path for path in small if path.read_bytes().startswith(b"version https://git-lfs")), None)


def _class_of(head: str | None, config: Any) -> str:
    """transformers' Auto class for this head of a model of this configuration."""
    return span_class(config) if head == "span" else HEADS[head]


def _know_separator(model: Any, name: str | Path) -> None:
    """NEZHA counts segments by [SEP], which the configurations of transformers 4 do not name; its tokenizer does."""
    try:
        separator = load_tokenizer(name).sep_token_id
    except InputError:
        return  # a folder without tokenizer: the configuration's own
    if separator is not None:
        model.config.sep_token_id = separator


def _restored(model: PreTrainedModel, head: str | None) -> PreTrainedModel:
    """What plain transformers does not know of: our attention, and the mask of a prefix LM where that head was asked for."""
    restore_attention(model)
    if head == "prefix":
        from .prefix import as_prefix_lm

        as_prefix_lm(model)
    return model


def register_names(config: Any) -> Any:
    """Makes transformers know the names of ours that a configuration has, before its model is built; returns it."""
    register_config(config)
    if getattr(config, FIELD, None):
        register_attention(getattr(config, FIELD))
        if str(config._attn_implementation).startswith(LOAD_ALONE):
            config._attn_implementation = None
    return config


def head_of(name: str | Path) -> str | None:
    """The head that a checkpoint was saved with, by its class name; None for a bare encoder or decoder."""
    ends = {
        "MaskedLM": "masked-lm",
        "ForPreTraining": "masked-lm",
        "CausalLM": "causal-lm",
        "LMHeadModel": "causal-lm",
        "ConditionalGeneration": "sequence-to-sequence",
        "SequenceClassification": "classification",
        "ImageClassification": "image-classification",
        "QuestionAnswering": "span",
        "TokenClassification": "token-classification",
    }
    config = load_config(name)
    if getattr(config, "jieyue_prefix", False):
        return "prefix"
    kind = (getattr(config, "architectures", None) or [""])[0]
    if kind.endswith("TokenClassification") and is_span_config(config):
        return "span"
    return next((head for end, head in ends.items() if kind.endswith(end)), None)


def check_own_attention(name: str | Path, asked: str) -> None:
    """Refuses a folder whose model has an attention of ours in place of its own, such as ``jieyue sparsify`` leaves; no weight is
    read. ``asked``: the argument, for the message."""
    if (own := getattr(load_config(name), FIELD, None)) is None:
        return
    record = read_record(name) if (Path(name) / RECORD).is_file() else {}
    do = "jieyue.use(model, attention=None) gives it back"
    if "model" in record:
        do = f"name the model that it was made from, {record['model']}"
    raise InputError(asked, f"{name}, whose attention is {own}", "a model with its own attention", do)


def save(
    model: Any,
    tokenizer: Any,
    folder: str | Path,
    record: Mapping[str, Any],
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes model, tokenizer and ``jieyue.json`` into ``folder``; each file appears whole or not at all.

    A model with adapters is written with them added to its weights (``merged``), as plain as any other.

    ``record``: what ``read_record`` will give back (the task, under the name ``recipe`` as ever, settings, version); JSON values only.
    ``weights``: in place of the model's own, by name.
    """
    from .low_rank import is_adapted
    from .merged import save_merged

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary, _silenced():
        try:
            if is_adapted(model):
                if weights is not None:
                    raise InputError("save", "weights for a model with adapters", "the model's own")
                save_merged(model, temporary)
            else:
                model.save_pretrained(temporary, **({} if weights is None else {"state_dict": dict(weights)}))
            tokenizer.save_pretrained(temporary)
        except (OSError, SafetensorError) as error:
            do = "make room and train on with --resume"
            raise InputError(f"save({str(folder)!r})", _first_line(error), "room for the model", do) from error
        for part in sorted(Path(temporary).rglob("*")):
            if part.is_file():
                target = folder / part.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(part, target)
    write_whole(folder / RECORD, json.dumps(record, ensure_ascii=False, indent=2) + "\n")
    return folder


def check_name(name: str | Path) -> None:
    """``InputError`` for a preset, a file, a path that is no folder, a folder without ``config.json``; others may be the hub's."""
    if str(name) in {*PRESETS, *CLASSIC_PRESETS} and not Path(name).is_dir():
        do = "train makes a model of a preset; name the folder that it leaves"
        raise InputError(
            f"load({str(name)!r})", "a preset, which has no weights yet", "a model's folder or hub name", do
        )
    if Path(name).is_file():
        raise InputError(f"load({str(name)!r})", "a file", "a transformers model folder, or a name on the hub")
    looks_like_path = os.sep in str(name) and (str(name).startswith((".", "/", "~")) or str(name).count("/") > 1)
    if looks_like_path and not Path(name).is_dir():
        raise InputError(f"load({str(name)!r}): no such folder{near_file(name)}")
    if os.sep in str(name) and not Path(name).exists() and (hint := near_file(name)):
        raise InputError(f"load({str(name)!r}): no such folder{hint}")  # else it would be asked of the hub
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise InputError(f"load({str(name)!r}): no config.json in that folder; expected a transformers model folder")


def _is_inside(model: Any, key: str) -> bool:
    """Whether a weight belongs to the encoder or decoder itself, not to a head on top."""
    body = model.base_model
    parts = {*dict(body.named_children()), *body._parameters} - {"pooler"}
    return key.removeprefix(model.base_model_prefix + ".").split(".")[0] in parts


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _place(name: str | Path) -> str:
    """What to say first of a name that is no folder's: it was asked of the hub."""
    return "" if Path(name).is_dir() else "no such folder here, and from the hub: "


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


class _silenced:
    """transformers' load tables and bars are off inside, and as they were afterwards."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self.verbosity = logging.get_verbosity()
        self.bars = logging.is_progress_bar_enabled()
        quiet()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self.verbosity)
        if self.bars:
            logging.enable_progress_bar()
