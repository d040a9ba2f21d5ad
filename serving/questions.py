"""A file of questions, answered: in order, in batches, one row out for each row in; a killed run goes on."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from aligngpt.processing.atomic_output import replacing
from aligngpt.processing.command_output import Mistakes
from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.corpus.images import open_image
from aligngpt.processing.corpus.sources import Shard, open_corpus

from .answering import Assistant, in_batch
from .arguments import ChatArguments, read_level
from .conversations import read_question, to_conversation


logger = logging.getLogger(__name__)

OF_RECORDS = "data"  # --level data: each record's own
BATCH_SIZE = 8
SHOWN_FAULTS = 10
# What answers depend on, beside the questions
SETTINGS: tuple[str, ...] = (
    "model",
    "revision",
    "dtype",
    "load_in_4bit",
    "load_in_8bit",
    "level",
    "system",
    "image_folder",
)
SETTINGS += ("max_new_tokens", "temperature", "top_p", "seed")


@dataclass
class Run:
    """What is asked, and how far an earlier run with the same settings came."""

    arguments: ChatArguments
    shards: list[Shard]
    settings: dict[str, Any]
    num_done: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # rows by kind of fault; "" for answers

    @property
    def output(self) -> Path:
        """Where the answers are when all are there."""
        assert self.arguments.output_file is not None
        return Path(self.arguments.output_file)

    @property
    def unfinished(self) -> Path:
        """Where they are until then: the settings in the first line, then answers."""
        return self.output.with_name(f"{self.output.name}.unfinished")


def open_run(arguments: ChatArguments) -> Run:
    """
    Opens questions and output, before anything slow.

    Raises:
        Mistakes: if the output is there already, or an unfinished one of other settings is.
        FileNotFoundError: if there are no questions.
    """
    assert arguments.input is not None
    shards = open_corpus(arguments.input)
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in SETTINGS}
    settings["questions"] = [[shard.name, shard.fingerprint] for shard in shards]
    if arguments.temperature > 0:  # random numbers are drawn for a batch
        settings["batch_size"] = arguments.batch_size or BATCH_SIZE
    run = Run(arguments, shards, json.loads(json.dumps(settings)))
    if run.output.exists():
        raise Mistakes([f"--output_file {run.output}: it is there already: name another file, or remove it first."])
    if run.unfinished.exists():
        _continue(run)
    return run


def _continue(run: Run) -> None:
    """Reads what an earlier run wrote; half a line, which a kill may leave, is cut off."""
    with open(run.unfinished, "r+b") as file:
        whole = 0
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            row = json.loads(line)
            if number:
                run.counts[row.get("fault", "")] += 1
                continue
            differing = [name for name in row.keys() | run.settings.keys() if row.get(name) != run.settings.get(name)]
            if differing:
                shown = "; ".join(f"{n}: {row.get(n)!r}, now {run.settings.get(n)!r}" for n in sorted(differing))
                raise Mistakes(
                    [
                        f"{run.unfinished} is of a run with other settings ({shown}): give the same, or remove it, or "
                        "name another --output_file."
                    ]
                )
        file.truncate(whole)
    run.num_done = run.counts.total()
    if whole == 0:
        run.unfinished.unlink()
    else:
        logger.info("%d questions were answered before: going on after them.", run.num_done)


def answer_file(run: Run, assistant: Assistant) -> None:
    """
    Answers what is left, and writes the answers to their place.

    Raises:
        ValueError: if the level is not one of the model's.
        ImageFolderNeededError: if images are paths and `--image_folder` is not given.
    """
    args = run.arguments
    if args.level != OF_RECORDS:
        assistant.processor.read_alignment_level(read_level(args.level))
    counts = [shard.count_rows() for shard in run.shards]
    total = None if None in counts else sum(count for count in counts if count is not None)
    rows = islice(_read_rows(run.shards), run.num_done, None)
    is_new = not run.unfinished.exists()
    num_levels_ignored = 0
    with (
        open(run.unfinished, "a", encoding="utf-8") as file,
        tqdm(total=total, initial=run.num_done, unit="question") as progress,
    ):
        if is_new:
            _write(file, [run.settings])
        while batch := list(islice(rows, args.batch_size or BATCH_SIZE)):
            answers = _answer(batch, assistant, args)
            _write(file, answers)
            for row in answers:
                run.counts[row.get("fault", "")] += 1
                if "fault" in row and run.counts.total() - run.counts[""] <= SHOWN_FAULTS:
                    tqdm.write(
                        f"Row {row['index']} (id {row['id']}): {row['fault']}: {row['message']}", file=progress.fp
                    )
            num_levels_ignored += sum(
                record.get("alignment_level") is not None for _, record in batch if isinstance(record, dict)
            )
            progress.update(len(batch))
    with replacing(run.output) as temporary, open(run.unfinished, "rb") as file, open(temporary, "wb") as answered:
        file.readline()  # the settings
        while chunk := file.read(1 << 20):
            answered.write(chunk)
    run.unfinished.unlink()
    num_answered = run.counts.pop("", 0)
    logger.info("%d questions answered: %s", num_answered, run.output)
    if run.counts:
        kinds = ", ".join(f"{kind}: {count}" for kind, count in run.counts.most_common())
        logger.warning("%d could not be asked, and say why in their rows (%s).", run.counts.total(), kinds)
    if num_levels_ignored and args.level != OF_RECORDS:
        logger.warning("%d records have an alignment level, which --level data would ask for.", num_levels_ignored)


def _read_rows(shards: list[Shard]) -> Iterator[tuple[int, Any]]:
    index = 0
    for shard in shards:
        for record in shard.read(0):
            yield index, record
            index += 1


def _write(file: TextIO, rows: list[dict[str, Any]]) -> None:
    """At once, and onto the disk: a row that was written is not answered again."""
    file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    file.flush()
    os.fsync(file.fileno())


def _answer(batch: list[tuple[int, Any]], assistant: Assistant, args: ChatArguments) -> list[dict[str, Any]]:
    """The rows of a batch, answers and faults in its order."""
    rows: list[dict[str, Any]] = []
    asked = []
    for index, record in batch:
        row: dict[str, Any] = {"index": index, "id": None}
        rows.append(row)
        try:
            sample, reference = read_question(record)
            row["id"] = sample.id
            if reference is not None:
                row["reference"] = reference
            level = read_level(args.level)
            if args.level == OF_RECORDS:
                if sample.level is None and sample.images:
                    raise Fault("missing_level", "--level data takes the record's alignment_level, and it has none.")
                level = -1 if sample.level is None else sample.level
                assistant.processor.read_alignment_level(level)
            conversation = to_conversation(
                sample, lambda image: open_image(image, args.image_folder)[0], system=args.system
            )
            asked.append((row, conversation, level))
        except Fault as fault:
            row["id"] = fault.id if row["id"] is None else row["id"]
            row |= {"fault": fault.kind, "message": str(fault)}
        except ValueError as error:
            if type(error) is not ValueError:
                raise
            row |= {"fault": "level_out_of_range", "message": str(error)}
    answers = in_batch(lambda chats: _ask(chats, assistant, args), [(chat, level) for _, chat, level in asked])
    for (row, _, _), answer in zip(asked, answers, strict=True):
        row |= {"fault": answer.kind, "message": str(answer)} if isinstance(answer, Fault) else answer
    return rows


def _ask(chats: list[tuple[Any, Any]], assistant: Assistant, args: ChatArguments) -> list[dict[str, Any]]:
    """What the rows of conversations with their levels say."""
    conversations, levels = zip(*chats, strict=True)
    inputs = assistant.prepare(list(conversations), list(levels))
    weights = assistant.weights(inputs).tolist()
    found = []
    for level, mix, (text, reason) in zip(levels, weights, assistant.answer(inputs, args), strict=True):
        answer = {"answer": text, "finish_reason": reason, "level": "auto" if level == -1 else level}
        found.append(answer | ({"alignment_weights": [round(weight, 4) for weight in mix]} if any(mix) else {}))
    return found
