"""
One table of records - good, odd, broken - through every door: scoring, levels, both stages, `--check`, `inspect`. All
have to agree on what a record means, with what stands in the table, which was written by hand.
"""

import base64
import io
import json
import sys
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from transformers import AutoProcessor

from aligngpt.__main__ import main
from aligngpt.processing import load_chat_template
from aligngpt.processing.corpus.faults import FAULT_KINDS, Fault
from aligngpt.processing.corpus.sources import open_corpus
from aligngpt.processing.levels.cutting import _row_of
from aligngpt.processing.scoring.arguments import ScoreArguments
from aligngpt.processing.scoring.run import score_corpus
from aligngpt.training.arguments import DataArguments, StageConfig
from aligngpt.training.check import check_data
from aligngpt.training.collator import AlignGPTDataCollator
from aligngpt.training.data import load_training_data


@dataclass
class Case:
    """A record and its meaning: `images`, by name; the user's first turn; what is trained; the level; or the fault."""

    record: Any
    images: tuple[str, ...] = ("a.png",)
    prompt: str = "<image>\nWhat?"
    answer: str = "A cat."
    level: int | None = 3
    fault: str | None = None  # at every door
    pair_fault: str | None = None  # where one image is scored, or has a level
    stage_1_fault: str | None = None


def png() -> str:
    with io.BytesIO() as file:
        Image.new("RGB", (16, 16), "blue").save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()


DATA = f"data:image/png;base64,{png()}"
IMAGE, WHAT, CAT = {"type": "image"}, {"type": "text", "text": "What?"}, {"role": "assistant", "content": "A cat."}
A = {"image": "a.png", "alignment_level": 3}
TEXT_ONLY = {"images": (), "prompt": "What?"}


def llava(*turns, **fields):
    conversations = [{"from": role, "value": text} for role, text in turns]
    return {**A, "conversations": conversations, **fields}


def chat(content, *more, **fields):
    return {**A, "messages": [{"role": "user", "content": content}, *(more or (CAT,))], **fields}


CAPTION = {"prompt": "<image>\n"}
H, G = "human", "gpt"
CASES = {
    # Captions
    "caption": Case({**A, "caption": "A cat."}, **CAPTION),
    "text as caption": Case({**A, "text": "A cat."}, **CAPTION),
    "caption before text": Case({**A, "caption": "A cat.", "text": "junk"}, **CAPTION),
    "null caption beside text": Case({**A, "caption": None, "text": "A cat."}, **CAPTION),
    "images of one": Case({"images": ["a.png"], "caption": "A cat.", "alignment_level": 3}, **CAPTION),
    "image and images alike": Case({**A, "images": ["a.png"], "caption": "A cat."}, **CAPTION),
    "path in a dictionary": Case({**A, "image": {"path": "a.png", "bytes": None}, "caption": "A cat."}, **CAPTION),
    "number as id": Case({**A, "id": 7, "caption": "A cat."}, **CAPTION),
    "spaces around": Case({**A, "caption": " A cat. "}, **CAPTION, answer=" A cat. "),
    "no image at all": Case({"caption": "A cat."}, images=(), prompt="", level=None),
    "empty image": Case({"image": "", "caption": "A cat."}, images=(), prompt="", level=None),
    "image of nothing": Case(
        {"image": {"bytes": None, "path": None}, "caption": "A cat."}, images=(), prompt="", level=None
    ),
    "a level without an image": Case({"caption": "A cat.", "alignment_level": 3}, images=(), prompt="", level=None),
    "caption missing": Case(A, fault="no_caption"),
    "caption null": Case({**A, "caption": None}, fault="no_caption"),
    "caption empty": Case({**A, "caption": " \n"}, fault="empty_caption"),
    "caption a number": Case({**A, "caption": 5}, fault="non_string_caption"),
    "caption a list": Case({**A, "caption": ["A cat."]}, fault="non_string_caption"),
    "half a character": Case({**A, "caption": "A cat \ud83d"}, fault="malformed_record"),
    "half a character in a path": Case({**A, "image": "\ud83d.png", "caption": "A cat."}, fault="malformed_record"),
    # Levels
    "similarity": Case({"image": "a.png", "caption": "A cat.", "similarity": 3}, **CAPTION),
    "similarity as a float": Case({"image": "a.png", "caption": "A cat.", "similarity": 3.0}, **CAPTION),
    "level as a float": Case({**A, "alignment_level": 3.0, "caption": "A cat."}, **CAPTION),
    "level before similarity": Case({**A, "caption": "A cat.", "similarity": 5}, **CAPTION),
    "no level": Case({"image": "a.png", "caption": "A cat."}, **CAPTION, level=None, stage_1_fault="missing_level"),
    "a similarity that is a score": Case(
        {"image": "a.png", "caption": "A cat.", "similarity": 0.27},
        **CAPTION,
        level=None,
        stage_1_fault="missing_level",
    ),
    "level too high": Case(
        {**A, "caption": "A cat.", "alignment_level": 8}, **CAPTION, level=8, stage_1_fault="level_out_of_range"
    ),
    "level true": Case({**A, "caption": "A cat.", "alignment_level": True}, fault="malformed_record"),
    "level a string": Case({**A, "caption": "A cat.", "alignment_level": "3"}, fault="malformed_record"),
    "level a fraction": Case({**A, "caption": "A cat.", "alignment_level": 2.5}, fault="malformed_record"),
    "similarity beyond 1": Case({"image": "a.png", "caption": "A cat.", "similarity": 2.5}, fault="malformed_record"),
    "level not a number": Case({**A, "caption": "A cat.", "alignment_level": float("nan")}, fault="malformed_record"),
    "score a string": Case({**A, "caption": "A cat.", "alignment_score": "0.3"}, fault="malformed_record"),
    # LLaVA's conversations
    "llava": Case(llava((H, "<image>\nWhat?"), (G, "A cat."))),
    "llava, image last": Case(llava((H, "What?\n<image>"), (G, "A cat."))),
    "llava, image in the middle": Case(
        llava((H, "What is <image> here?"), (G, "A cat.")), prompt="<image>\nWhat is  here?"
    ),
    "llava without a place": Case(llava((H, "What?"), (G, "A cat."))),
    "llava with a system message": Case(llava(("system", "Look."), (H, "<image>\nWhat?"), (G, "A cat."))),
    "llava that the assistant opens": Case(llava((G, "Hello."), (H, "<image>\nWhat?"), (G, "A cat."))),
    "llava, image in the second turn": Case(
        llava((H, "Hi"), (G, "A cat."), (H, "<image>\nAnd?"), (G, "A dog.")), prompt="Hi", answer="A cat.\nA dog."
    ),
    "llava, an answer about the token": Case(
        llava((H, "<image>\nWhat?"), (G, "A <image> tag.")), answer="A <image> tag."
    ),
    "llava, text only": Case(llava((H, "What?"), (G, "A cat."), image=None), **TEXT_ONLY, level=None),
    "llava, two places for one image": Case(
        llava((H, "<image>\n<image>\nWhat?"), (G, "A cat.")), fault="placeholder_count"
    ),
    "llava, two images": Case(
        llava((H, "<image>\n<image>\nWhat?"), (G, "A cat."), image=["a.png", "b.png"]),
        images=("a.png", "b.png"),
        prompt="<image>\n<image>\nWhat?",
        pair_fault="several_images",
    ),
    "llava, a place without an image": Case(llava((H, "<image>\nWhat?"), (G, "A cat."), image=None), fault="missing"),
    "llava, nobody known": Case(llava(("bot", "What?"), (G, "A cat.")), fault="malformed_record"),
    "llava, no answer": Case(llava((H, "<image>\nWhat?")), fault="no_caption"),
    "llava, an empty answer": Case(llava((H, "<image>\nWhat?"), (G, "")), fault="empty_caption"),
    "llava, an answer of null": Case(llava((H, "<image>\nWhat?"), (G, None)), fault="non_string_caption"),
    # Messages
    "messages of strings": Case(chat("<image>\nWhat?")),
    "typed parts": Case(chat([IMAGE, WHAT])),
    "typed parts, image last": Case(chat([WHAT, IMAGE])),
    "typed parts with an answer of parts": Case(
        chat([IMAGE, WHAT], {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]})
    ),
    "texts around images": Case(
        chat([{"type": "text", "text": "One "}, IMAGE, {"type": "text", "text": "two "}, IMAGE], images=["a.png"] * 2)
        | {"image": None},
        images=("a.png", "a.png"),
        prompt="<image>\n<image>\nOne two ",
        pair_fault="several_images",
    ),
    "text parts are one text": Case(chat([IMAGE, {"type": "text", "text": "Wh"}, {"type": "text", "text": "at?"}])),
    "parts as a table has them": Case(chat([{"type": "image", "text": None}, {**WHAT, "image": None}])),
    "an image inside a part": Case(chat([{**IMAGE, "image": "a.png"}, WHAT], image=None)),
    "a path inside a part": Case(chat([{**IMAGE, "path": "a.png"}, WHAT], image=None)),
    "an image inside and beside": Case(chat([{**IMAGE, "image": "a.png"}, WHAT])),
    "image_url, a string": Case(chat([{"type": "image_url", "image_url": "a.png"}, WHAT], image=None)),
    "image_url, an object": Case(
        chat([{"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}, WHAT], image=None)
    ),
    "image_url, data": Case(
        chat([{"type": "image_url", "image_url": {"url": DATA}}, WHAT], image=None), images=(DATA,)
    ),
    "input_image and input_text": Case(
        chat([{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": "a.png"}], image=None)
    ),
    "base64": Case(
        chat([{"type": "image", "base64": png()}, WHAT], image=None), images=(f"data:image;base64,{png()}",)
    ),
    "an answer of weight 0": Case(
        chat([IMAGE, WHAT], {**CAT, "content": "Nonsense.", "weight": 0}, {"role": "user", "content": "So?"}, CAT)
    ),
    "an answer of weight 1": Case(chat([IMAGE, WHAT], {**CAT, "weight": 1})),
    "nothing but weight 0": Case(chat([IMAGE, WHAT], {**CAT, "weight": 0}), fault="no_caption"),
    "half a weight": Case(chat([IMAGE, WHAT], {**CAT, "weight": 0.5}), fault="malformed_record"),
    "a weight on a question": Case(
        {**A, "messages": [{"role": "user", "content": [IMAGE, WHAT], "weight": 1}, CAT]}, fault="malformed_record"
    ),
    "a video": Case(chat([{"type": "video", "video": "a.mp4"}, WHAT]), fault="unknown_part"),
    "a tool's part": Case(chat([{"type": "tool_use", "id": "x"}, WHAT]), fault="unknown_part"),
    "a tool call": Case(chat([IMAGE, WHAT], {**CAT, "tool_calls": [{"id": "x"}]}), fault="unknown_part"),
    "tools of the record": Case(chat([IMAGE, WHAT], tools=[{"name": "x"}]), fault="unknown_part"),
    "pictures of a turn": Case(
        {"messages": [{"role": "user", "content": "What?", "images": ["a.png"]}, CAT]}, fault="unknown_part"
    ),
    "an answer that is not to be learnt": Case(chat([IMAGE, WHAT], {**CAT, "train": False}), fault="unknown_part"),
    "a thought": Case(chat([IMAGE, WHAT], {**CAT, "thinking": "Hm."}), fault="unknown_part"),
    "a turn that is two": Case(chat([IMAGE, WHAT], {**CAT, "from": "gpt", "value": "A dog."}), fault="unknown_part"),
    "a turn with a name": Case(chat([IMAGE, WHAT], {**CAT, "name": "Bot"})),
    "another's source": Case(chat([{**IMAGE, "source": {"data": "x"}}, WHAT]), fault="unknown_part"),
    "images by number": Case(
        chat([{**IMAGE, "index": 1}, WHAT, {**IMAGE, "index": 0}], images=["a.png", "b.png"]) | {"image": None},
        images=("b.png", "a.png"),
        prompt="<image>\n<image>\nWhat?",
        pair_fault="several_images",
    ),
    "an image by a number that is none": Case(chat([{**IMAGE, "index": 3}, WHAT]), fault="placeholder_count"),
    "a system prompt of the record": Case(chat([IMAGE, WHAT], system_prompt="Look."), fault="unknown_part"),
    "an image without its question": Case(
        {**A, "messages": [{"role": "system", "content": "Look."}, CAT]}, prompt="<image>\n"
    ),
    "bytes that are text": Case(
        {**A, "image": {"bytes": "x", "path": "a.png"}, "caption": "A cat."}, fault="malformed_record"
    ),
    "a video of the record": Case({"video": "a.mp4", "caption": "A cat."}, fault="unknown_part"),
    "a tool's turn": Case(chat([IMAGE, WHAT], {"role": "tool", "content": "x"}, CAT), fault="malformed_record"),
    "a part without a type": Case(chat([{"text": "What?"}]), fault="malformed_record"),
    "a part that is a string": Case(chat(["What?"]), fault="malformed_record"),
    "a part of null text": Case(chat([IMAGE, {"type": "text", "text": None}]), fault="non_string_caption"),
    "an uploaded file": Case(
        chat([{"type": "input_image", "file_id": "file-1"}, WHAT], image=None), fault="unknown_part"
    ),
    "two images, one place": Case(
        chat([IMAGE, WHAT], images=["a.png", "b.png"]) | {"image": None}, fault="placeholder_count"
    ),
    "image and images differ": Case({**A, "images": ["b.png"], "caption": "A cat."}, fault="malformed_record"),
    "messages and conversations": Case(
        chat([IMAGE, WHAT]) | {"conversations": [{"from": H, "value": "x"}]}, fault="malformed_record"
    ),
    "an image of the assistant": Case(
        chat("What?", {"role": "assistant", "content": [IMAGE, {"type": "text", "text": "A cat."}]}),
        fault="malformed_record",
    ),
    "messages a string": Case({**A, "messages": "What?"}, fault="malformed_record"),
    "a turn without content": Case({**A, "messages": [{"role": "user"}, CAT]}, fault="malformed_record"),
    "a list for a record": Case(["a.png", "A cat."], fault="malformed_record"),
    # Pictures
    "image a number": Case({**A, "image": 7, "caption": "A cat."}, fault="missing"),
    "image null in a list": Case({**A, "image": [None], "caption": "A cat."}, fault="missing"),
    "a picture that is not there": Case({**A, "image": "no.png", "caption": "A cat."}, fault="missing"),
    "a picture elsewhere": Case({**A, "image": "../a.png", "caption": "A cat."}, fault="outside_image_folder"),
    "a picture that is none": Case({**A, "image": "none.png", "caption": "A cat."}, fault="corrupt"),
    "a URL": Case({**A, "image": "https://example.com/a.png", "caption": "A cat."}, fault="missing"),
    "data that are none": Case({**A, "image": "data:image/png;base64,####", "caption": "A cat."}, fault="corrupt"),
}
OPENED = [name for name, case in CASES.items() if name.startswith(("a picture", "a URL", "data that"))]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The records as one file, and their images. A record's row is its place in the table, its id its name."""
    folder = tmp_path_factory.mktemp("records")
    for name, colour in (("a", "red"), ("b", "green")):
        Image.new("RGB", (16, 16), colour).save(folder / f"{name}.png")
    (folder / "none.png").write_text("no picture")
    with open(folder / "records.jsonl", "w") as file:
        for name, case in CASES.items():
            record = case.record
            file.write(json.dumps({"id": name, **record} if isinstance(record, dict) else record) + "\n")
    return folder


def names_of(cases):
    """Ids by row as readers tell them: a record's own, or file and row where it has none."""
    return {
        "7" if name == "number as id" else name if isinstance(case.record, dict) else f"records.jsonl:{row}": name
        for row, (name, case) in enumerate(cases.items())
    }


NAMES = names_of(CASES)


def expected_faults(*kinds):
    """By name, the first fault that a door has of the named kinds."""
    found = {
        name: next((getattr(case, kind) for kind in kinds if getattr(case, kind)), None)
        for name, case in CASES.items()
    }
    return {name: kind for name, kind in found.items() if kind}


def test_the_table_has_sixty_records_and_knows_no_kind_of_its_own():
    assert len(CASES) >= 60 and len(NAMES) == len(CASES)
    kinds = {kind for case in CASES.values() for kind in (case.fault, case.pair_fault, case.stage_1_fault) if kind}
    assert kinds <= FAULT_KINDS.keys()


def test_scoring_reads_the_table(corpus, clip_scorer, tmp_path):
    score_corpus(
        ScoreArguments(
            data=str(corpus / "records.jsonl"),
            scorer=str(clip_scorer),
            output_dir=str(tmp_path / "scores"),
            image_folder=str(corpus),
            device="cpu",
            num_workers=0,
        )
    )
    faults = [json.loads(line) for line in (tmp_path / "scores" / "faults.jsonl").read_text().splitlines()]
    found = {list(CASES)[fault["row"]]: fault["kind"] for fault in faults}
    assert found == expected_faults("fault", "pair_fault")
    rows = pq.read_table(tmp_path / "scores" / "shard-00000-part-00000.parquet").to_pylist()
    assert len(rows) + len(faults) == len(CASES)
    for row in rows:
        case = CASES[list(CASES)[row["row"]]]
        assert (row["caption"], row["image"]) == (case.answer, case.images[0] if case.images else None), row["id"]
        assert (row["alignment_score"] is None) == (not case.images)


def test_levels_read_the_table(corpus):
    (shard,) = open_corpus(str(corpus / "records.jsonl"))
    found = {}
    for row, (name, record) in enumerate(zip(CASES, shard.read(0), strict=True)):
        case = CASES[name]
        try:
            read = _row_of(record, shard.name, row, embedded=False)
        except ValueError as error:
            found[name] = error.__cause__.kind
            continue
        if name not in OPENED:
            image = case.images[0] if case.images else None
            assert (read["caption"], read["image"], read["alignment_level"]) == (case.answer, image, case.level), name
    # Levels open no picture
    expected = expected_faults("fault", "pair_fault")
    assert found == {name: kind for name, kind in expected.items() if name not in OPENED}


def read_rows(corpus):
    rows = list(load_training_data(str(corpus / "records.jsonl"), on_bad_row="keep"))
    return {NAMES[row["id"]]: row for row in rows}


def text_of(processor, ids):
    return processor.decode(ids).replace("<image>" * 16, "<image>")


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_training_reads_the_table(stage, corpus, processor):
    options = {"chat_template": "plain", "num_alignment_levels": 8} if stage == "pretrain" else {}
    collator = AlignGPTDataCollator(processor, image_folder=str(corpus), on_bad_row="skip", **options)
    rows, found = read_rows(corpus), {}
    assert rows.keys() == CASES.keys()
    for name, row in rows.items():
        case = CASES[name]
        try:
            batch = collator([row])
        except Fault as fault:
            found[name] = fault.kind
            continue
        if batch["skipped_rows"]:
            found[name] = batch["skipped_rows"][0].kind
            continue
        assert tuple(row["images"]) == case.images, name
        labels = batch["labels"][0]
        trained = processor.decode(labels[labels != -100]).replace("< image>", "<image>")
        if stage == "pretrain":
            assert trained.split() == case.answer.split() and trained.endswith("\n"), name
            assert batch["alignment_levels"].tolist() == [-1 if case.level is None else case.level], name
        else:
            assert trained.replace("</s>", "\n").split() == case.answer.split(), name
            prompt = text_of(processor, batch["input_ids"][0]).split("USER:")[1].split("ASSISTANT:")[0]
            assert prompt.split() == case.prompt.split(), name
    assert found == expected_faults("fault", *(["stage_1_fault"] if stage == "pretrain" else []))


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_the_check_says_what_training_would(stage, corpus, processor, tmp_path):
    options = {"chat_template": "plain", "num_alignment_levels": 8} if stage == "pretrain" else {}
    collator = AlignGPTDataCollator(processor, image_folder=str(corpus), **options)
    data_args = DataArguments(data=str(corpus / "records.jsonl"), image_folder=str(corpus))
    training_args = StageConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert check_data(data_args, training_args, collator) == 1
    report = json.loads((tmp_path / "data_check.json").read_text())
    faults = expected_faults("fault", *(["stage_1_fault"] if stage == "pretrain" else []))
    assert {NAMES[fault["id"]]: fault["kind"] for fault in report["faults"]} == faults
    good = [case for name, case in CASES.items() if name not in faults]
    assert report["rows"] == len(CASES) and report["images"] == sum(len(case.images) for case in good)
    assert report["rows_with_images"] == sum(bool(case.images) for case in good)
    assert report["text_only_rows"] == sum(not case.images for case in good)
    levels = [case.level for case in good if case.images]
    assert report["levels"] == {"none" if level is None else str(level): levels.count(level) for level in set(levels)}
    assert report["notes"]["leading_answer_dropped"] == 1


def test_inspect_shows_what_training_would(corpus, processor, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda _: processor)  # loaded once, not for each record
    command = ["aligngpt", "inspect", str(checkpoint), "--image_folder", str(corpus)]
    command += ["--data", str(corpus / "records.jsonl")]
    faults = expected_faults("fault")
    for row_id, name in NAMES.items():
        monkeypatch.setattr(sys, "argv", [*command, "--id", row_id])
        if name in faults:
            with pytest.raises(SystemExit):
                main()
            assert f"row {row_id}: {faults[name]}: " in " ".join(capsys.readouterr().err.split()), name
            continue
        main()
        printed = " ".join(capsys.readouterr().out.split())
        case = CASES[name]
        assert f"row {row_id}: " in printed
        assert f"level {'not given' if case.level is None else case.level}" in printed, name
        trained = " ".join(part.split("]]")[0] for part in printed.split("[[")[1:]).replace("</s>", "")
        assert trained.replace("< image>", "<image>").split() == case.answer.split(), name


@pytest.mark.parametrize("template", ["vicuna_v1", "chatml", "llama3", "mistral", "gemma", "phi3"])
def test_a_training_file_and_the_chat_template_give_the_same_prompt(template, processor, corpus):
    processor.chat_template = {**processor.chat_template, "default": load_chat_template(template)}
    for name, case in CASES.items():
        if name == "images by number":  # which transformers does not know
            continue
        messages = case.record.get("messages") if isinstance(case.record, dict) else None
        if case.fault or not isinstance(messages, list) or not isinstance(messages[0]["content"], list):
            continue
        if any(part["type"] not in ("image", "text") or part.get("base64") for part in messages[0]["content"]):
            continue
        images = iter([{"type": "image", "path": str(corpus / image)} for image in case.images])
        parts = [next(images) if part["type"] == "image" else part for part in messages[0]["content"]]
        chat = [{"role": "user", "content": parts}, *({k: m[k] for k in ("role", "content")} for m in messages[1:])]
        expected = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
        batch = AlignGPTDataCollator(processor, image_folder=str(corpus))([case.record])
        assert batch["input_ids"].tolist() == expected["input_ids"].tolist(), name
