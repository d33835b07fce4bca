"""Dialogue by a causal language model: section "DialoGPT-like multi-turn chit-chat" of 7718.

data      LCCC, CDial-GPT, OpenAI messages: data/dialogues.py
command   jieyue train chat, jieyue chat, jieyue serve
cost      tokens on disk, mapped; one forward and backward pass over each token
score     perplexity a token and a character; BLEU-2/4, NIST, Dist-1/2, entropy, length, repetition of greedy replies
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from jieyue.data.corpora.everyday import compose_talks, heldout_openings, heldout_talks
from jieyue.data.dialogues import Dialogue, DialogueFiles, Format, contamination
from jieyue.data.findings import Findings
from jieyue.data.history import Message
from jieyue.data.packing import DialogueRows
from jieyue.data.repeats import with_new_replies
from jieyue.data.speakers import parse_roles
from jieyue.data.streams import part_of
from jieyue.errors import InputError
from jieyue.hf.causal_presets import CAUSAL_PRESETS
from jieyue.listener import SILENT, ProgressListener
from jieyue.report import Report
from jieyue.tasks import Card, Deciding, Facts, Judged, Prediction, RunConfig, Sources, Task, name_of
from jieyue.tasks.fields import text_of
from jieyue.tasks.models import ModelSource
from jieyue.tasks.sources import sampled
from jieyue.training.objective import Objective

from .models import open_chat_model
from .replies import fits, log_probability, reply_to, score_replies
from .report import QUALITY, report_examples, report_quality
from .rows import dialogue_loss, encode_dialogues
from .settings import ChatSettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["TASK", "ChatTask"]

HELD_OUT = 0.02  # of files that come without a held-out part
MOST_JUDGED = 2000  # held-out dialogues; all are read
MOST_REPLIES = 200  # replies that are written to be judged
JUDGING = ("valid", "validation", "dev", "test")  # parts of a file that may be held out


class ChatTask(Task[Dialogue, ChatSettings, str]):
    """A reply to each dialogue; one that ends with a reply is asked for it again, and judged by it."""

    name = "chat"
    title = "Dialogue"
    noun = "dialogues"
    doing = "replying"
    head = "causal-lm"
    quality = QUALITY
    settings_class = ChatSettings
    curve_examples = 40
    deciding = Deciding(
        score="loss",
        title="Loss on held-out dialogues",
        quantity="loss",
        unit="nats a token",
        higher_is_better=False,
    )
    card = Card(
        usage=lambda folder: (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{folder}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n\n'
            "# jieyue chat FOLDER       in the terminal\n"
            "# jieyue serve FOLDER      OpenAI's protocol and a web page\n"
            "# transformers serve       works with the folder too"
        ),
        limits="A small model that repeats what it read in its dialogues, knows nothing else, and is wrong with confidence.",
        tags=("conversational", "text-generation"),
    )

    def default_settings(self, config: RunConfig, seed: int) -> ChatSettings:
        """The article's 512 tokens; a preset's dialogues share rows, under any attention."""
        most = 512 if config.data else 256
        packed = config.model in CAUSAL_PRESETS
        return ChatSettings(max_tokens=most, row_tokens=most if packed else None)

    # -- data

    def read(
        self, files: Sequence[str | Path], settings: ChatSettings, *, skip_bad: bool = False
    ) -> tuple[DialogueFiles, Findings]:
        """Dialogues to judge by: of files that are objects of lists by split the first list with a name of ``JUDGING``."""
        found = DialogueFiles(
            list(files),
            part=_part(files, JUDGING, settings),
            skip_bad=skip_bad,
            limit=MOST_JUDGED,
            known=_format(settings),
        )
        return found, found.findings

    def shipped(self, limit: int | None, seed: int) -> tuple[list[Dialogue], Findings]:
        talks = list(sampled(compose_talks(seed), limit, "train"))
        findings = Findings()
        findings.counts.update(dialogues=len(talks), turns=sum(map(len, talks)))
        return talks, findings

    def shipped_held_out(self) -> tuple[list[Dialogue], Findings]:
        talks = heldout_talks()
        findings = Findings()
        findings.counts.update(dialogues=len(talks), turns=sum(map(len, talks)))
        return talks, findings

    def groups(self, examples: Sequence[Dialogue]) -> list[str]:
        return ["\n".join(one.text for one in dialogue[:2]) for dialogue in examples]

    def shared(self, train: Sequence[Dialogue], held_out: Sequence[Dialogue]) -> Mapping[str, int]:
        return contamination(train, held_out)

    def texts(self, examples: Sequence[Dialogue]) -> list[str]:
        """The texts of the first hundred thousand dialogues."""
        return [one.text for dialogue in islice(examples, 100_000) for one in dialogue]

    def sources(self, config: RunConfig, settings: ChatSettings, seed: int) -> Sources[Dialogue]:
        """Files are gone through anew whenever they are needed, so that none stays in memory; the part that is held out (a
        fiftieth where no file is named, by opening and by reply) stands for the part set aside as well.
        """
        name = name_of(config.data)
        own: Findings | None = None
        held: Sequence[Dialogue]
        if not config.data:
            train, findings = self.training_examples(config, settings, seed)
            held, own = self.held_out_examples(config, settings) or ((), None)
        else:
            share = 0.0 if config.held_out else HELD_OUT
            part = _part(config.data, ("train",), settings)
            files = DialogueFiles(
                list(config.data),
                part=part,
                skip_bad=config.skip_bad,
                held_out=share,
                limit=config.limit,
                known=_format(settings),
                progress=config.progress,
            )
            train, findings, held = files, files.findings, _held_by_reply(files)
            if config.held_out:
                held, own = self.read(config.held_out, settings, skip_bad=config.skip_bad)
            if not held or not len(train):
                count, same = findings.counts["dialogues"], findings.counts["dialogues_repeated"]
                told = f", {same} of them the same as another" if same else ""
                raise InputError(
                    f"{name}: {count} dialogues{told}: too few different ones to hold some out; name a held-out file (--held-out)"
                )
        held = list(sampled(held, MOST_JUDGED, "held out"))
        return Sources(name, train, held, held, findings, own, self.shared(train, held))

    def check(
        self, config: RunConfig, settings: ChatSettings
    ) -> tuple[Sequence[Dialogue], dict[str, Findings], Mapping[str, int]]:
        if config.held_out or not config.data:
            sources = self.sources(config, settings, 0)
            findings = {"training files": sources.findings}
            if sources.held_out_findings is not None:
                findings["held-out files"] = sources.held_out_findings
            return sources.train, findings, sources.shared or {}
        files = DialogueFiles(
            list(config.data),
            part=_part(config.data, ("train",), settings),
            skip_bad=config.skip_bad,
            limit=config.limit,
            known=_format(settings),
            progress=config.progress,
        )
        return files, {"training files": files.findings}, {}

    # -- model and training

    def open_model(
        self,
        config: RunConfig,
        settings: ChatSettings,
        texts: Callable[[], Sequence[str]],
        *,
        start: str | None = None,
        seed: int = 0,
    ) -> ModelSource:
        return open_chat_model(config, texts, seed=seed)

    def encode(
        self,
        examples: Sequence[Dialogue],
        tokenizer: Tokenizer,
        settings: ChatSettings,
        *,
        folder: Path | None = None,
    ) -> tuple[DialogueRows, Counter[str]]:
        return encode_dialogues(examples, tokenizer, settings, folder)

    def objective(self, settings: ChatSettings) -> Objective:
        return dialogue_loss

    def example_batch(self, settings: ChatSettings, rows: int, positions: int) -> dict[str, Tensor]:
        batch = {name: torch.zeros(rows, positions, dtype=torch.long) for name in ("input_ids", "labels")}
        batch["attention_mask"] = torch.ones(rows, positions, dtype=torch.long)
        if settings.row_tokens is not None:
            batch["position_ids"] = torch.arange(positions).repeat(rows, 1)
        return batch

    # -- replying and judging

    def answer(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        examples: Sequence[Dialogue],
        settings: ChatSettings,
        *,
        batch_size: int = 32,
        done: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """The likeliest reply to each, "" where its newest turn alone is too long to be read."""
        talks = [_context(dialogue) for dialogue in examples]
        read = [number for number, talk in enumerate(talks) if talk and fits(tokenizer, talk, settings)]
        asked = [talks[number] for number in read]
        said = reply_to(model, tokenizer, asked, settings, batch_size=batch_size, done=done)
        replies = [""] * len(talks)
        for number, one in zip(read, said, strict=True):
            replies[number] = one
        return replies

    def from_row(self, row: Facts, settings: ChatSettings) -> Dialogue:
        """``messages`` as OpenAI has them, or one text that the user says; the reply is to the last turn, whoever speaks there."""
        messages = row.get("messages")
        if messages is None:
            names = ("text", "prompt", "instruction", "question", "query", "input", "user")
            return (Message("user", text_of(row, names, "what the user says, or messages")),)
        if not isinstance(messages, list) or not messages:
            raise InputError("row, field 'messages'", f"{messages!r:.60}", "a list of turns")
        talk = []
        for one in messages:
            known = isinstance(one, dict) and one.get("role") in ("system", "user", "assistant")
            if not known or not isinstance(one.get("content"), str):
                raise InputError("row, field 'messages'", f"{one!r:.60}", "role (system, user, assistant) and content")
            talk.append(Message(one["role"], one["content"]))
        if talk[-1].role != "user":
            raise InputError("row, field 'messages'", f"a last turn of the {talk[-1].role}", "one of the user")
        return tuple(talk)

    def told(self, answer: str) -> Prediction:
        return Prediction(answer)

    def score(self, answers: Sequence[str], examples: Sequence[Dialogue], memory: Facts | None = None) -> Facts:
        """Of replies to dialogues that end with the true one."""
        return score_replies(answers, [dialogue[-1].text for dialogue in examples])

    def measure(
        self, model: nn.Module, tokenizer: Tokenizer, examples: Sequence[Dialogue], settings: ChatSettings
    ) -> float:
        loss, _ = log_probability(model, tokenizer, examples[: self.curve_examples], settings)
        return float(loss.mean())

    def judge(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        held_out: Sequence[Dialogue],
        settings: ChatSettings,
        memory: Facts | None = None,
        *,
        batch_size: int = 32,
        listener: ProgressListener = SILENT,
    ) -> Judged[Dialogue, str]:
        """Perplexity of every dialogue; replies to some. Of the corpus that ships, openings with a key phrase as well."""
        listener.say(f"Judging by {len(held_out)} held-out dialogues")
        held = [dialogue for dialogue in held_out if len(dialogue) > 1]
        loss, characters = log_probability(model, tokenizer, held or held_out, settings, batch_size=batch_size)
        chosen = held[:: max(1, len(held) // MOST_REPLIES)][:MOST_REPLIES]
        asked = [dialogue if dialogue[-1].role == "assistant" else dialogue[:-1] for dialogue in chosen]
        asked = [dialogue for dialogue in asked if len(dialogue) > 1 and dialogue[-2].role == "user"]
        started = time.perf_counter()
        replies = self.answer(model, tokenizer, asked, settings, batch_size=batch_size)
        seconds = time.perf_counter() - started
        scores = {
            "loss": float(loss.mean()),
            **score_replies(replies, [one[-1].text for one in asked], loss, characters),
        }
        scores["too_long"] = sum(not fits(tokenizer, _context(one), settings) for one in asked)
        beside: Facts = {"dialogues": len(held_out)}
        if list(held_out) == heldout_talks():
            openings = heldout_openings()
            asked = [(Message("user", one.text), Message("assistant", one.key)) for one in openings]
            replies = self.answer(model, tokenizer, asked, settings, batch_size=batch_size)
            hits = [one.key.casefold() in said.casefold() for one, said in zip(openings, replies, strict=True)]
            beside["hits"] = hits
        return Judged(asked, replies, scores, seconds, batch_size, beside)

    def report(self, report: Report, judged: Judged[Dialogue, str], settings: ChatSettings, fitted: Facts) -> None:
        rate = len(judged.answers) / max(judged.seconds, 1e-9)
        report_quality(report, judged.scores, judged.beside, rate)
        report_examples(report, judged.examples, judged.answers, judged.beside)

    def numbers(self, judged: Judged[Dialogue, str]) -> dict[str, float]:
        return {name: float(judged.scores[name]) for name in ("loss", "perplexity_character", "bleu_2", "dist_2")}


def _context(dialogue: Dialogue) -> Dialogue:
    """What a reply is asked for: everything before the last turn where that is a reply itself."""
    return dialogue[:-1] if dialogue[-1].role == "assistant" else dialogue


def _held_by_reply(files: DialogueFiles) -> list[Dialogue]:
    """Of the dialogues held out by their openings those whose reply is new as well; all of them where fewer than half are:
    what is always said in the same words is judged by them, and the report says at the score how many stand in training.
    """
    new = with_new_replies(files.repeats, files.held)
    if 2 * len(new) < len(files.held):
        return files.held
    files.findings.counts["dialogues_of_said_replies"] = len(files.held) - len(new)
    return new


def _format(settings: ChatSettings) -> Format:
    """What the settings say of the files."""
    return Format(roles=parse_roles(settings.roles), delimiter=settings.delimiter, encoding=settings.encoding)


def _part(paths: Sequence[str | Path], wanted: Sequence[str], settings: ChatSettings) -> str | None:
    """What to take of files that are objects of lists by split: the first list of a wanted name, None = everything."""
    return next((found for path in paths if (found := part_of(path, wanted, settings.encoding))), None)


TASK = ChatTask()
