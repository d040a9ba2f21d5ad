"""Rows that cannot be trained on: skipped and counted, the end of a run, or found by the check before it."""

import json
import shutil

import pytest

from aligngpt.processing.corpus.images import ImageFolderNeededError


def write_broken(data, folder, base="chats.jsonl"):
    """The conversations with one image that is broken and one that is missing."""
    records = [json.loads(line) for line in (data / base).read_text().splitlines()]
    (data / "broken.png").write_bytes((data / "1.png").read_bytes()[:60])
    records[1]["image"], records[2]["image"] = "broken.png", "nowhere.png"
    path = folder / "broken.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_broken_images_are_skipped_and_counted_in_the_logs(run_sft, stage_1, data, tmp_path):
    path = write_broken(data, tmp_path)
    trainer = run_sft(stage_1, tmp_path / "out", "--train_file", path, "--on_bad_row", "skip")  # 3 x 4 rows: all once
    assert sum(log.get("skipped_rows", 0) for log in trainer.state.log_history) == 2


def test_a_run_of_nothing_but_skipped_rows_ends(run_sft, stage_1, data, tmp_path):
    records = [json.loads(line) | {"image": "nowhere.png"} for line in (data / "chats.jsonl").read_text().splitlines()]
    path = tmp_path / "nowhere.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ValueError, match="Step 1 has no token to train on: all its rows were skipped"):
        run_sft(stage_1, tmp_path / "out", "--train_file", path, "--on_bad_row", "skip")


def test_the_loss_of_an_evaluation_is_that_of_the_rows_that_are_not_skipped(run_sft, stage_1, data, tmp_path):
    records = [json.loads(line) for line in (data / "chats.jsonl").read_text().splitlines()]
    broken = [record | {"image": "nowhere.png"} for record in records[:4]]
    for name, rows in (("broken", broken + records[4:]), ("good", records[4:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rows))
    losses = []
    for name in ("broken", "good"):
        arguments = ["--eval_file", tmp_path / f"{name}.jsonl", "--eval_strategy", "steps", "--eval_steps", "3"]
        arguments += ["--on_bad_row", "skip", "--per_device_eval_batch_size", "4", "--learning_rate", "0"]
        trainer = run_sft(stage_1, tmp_path / name, *arguments)
        losses += [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_skipped_rows_of_an_evaluation_are_counted(run_sft, stage_1, data, tmp_path):
    path = write_broken(data, tmp_path)
    arguments = ["--eval_file", path, "--eval_strategy", "steps", "--eval_steps", "3", "--on_bad_row", "skip"]
    trainer = run_sft(stage_1, tmp_path / "out", *arguments)
    assert [log["eval_skipped_rows"] for log in trainer.state.log_history if "eval_loss" in log] == [2]


def test_rows_skipped_after_the_last_log_are_counted_at_the_end(run_sft, stage_1, data, tmp_path):
    arguments = ["--train_file", write_broken(data, tmp_path), "--on_bad_row", "skip", "--logging_steps", "20"]
    trainer = run_sft(stage_1, tmp_path / "out", *arguments)
    assert sum(log.get("skipped_rows", 0) for log in trainer.state.log_history) == 2


def test_broken_images_end_a_run_otherwise(run_sft, stage_1, data, tmp_path):
    with pytest.raises(ValueError, match=r"row (1: truncated|2: missing)"):
        run_sft(stage_1, tmp_path / "out", "--train_file", write_broken(data, tmp_path))


@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_check_reports_every_row_and_trains_nothing(run_sft, stage_1, data, tmp_path, workers):
    path = write_broken(data, tmp_path)
    unanswered = {"id": "unanswered", "messages": [{"role": "user", "content": "Red?"}]}
    several = {"id": "several", "image": "1.png", "conversations": [{"from": "human", "value": "<image><image>"}]}
    long = {
        "id": "long",
        "messages": [{"role": "user", "content": "Red?"}, {"role": "assistant", "content": "a" * 200}],
    }
    with open(path, "a") as file:
        file.writelines(json.dumps(record) + "\n" for record in (unanswered, several, long))
    with pytest.raises(SystemExit) as stop:
        run_sft(
            *(stage_1, tmp_path / "out", "--check", "true", "--train_file", path),
            *("--max_length", "150", "--dataloader_num_workers", workers),
        )
    assert stop.value.code == 1
    report = json.loads((tmp_path / "out" / "data_check.json").read_text())
    assert report["rows"] == 15
    assert {fault["id"]: fault["kind"] for fault in report["faults"]} == {
        "1": "truncated",
        "2": "missing",
        "unanswered": "no_caption",
        "several": "placeholder_count",
        "long": "too_long",
    }
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["data_check.json"]


def test_the_check_of_conversations_needs_no_weights(run_sft, stage_1, tmp_path):
    shutil.copytree(stage_1, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(SystemExit) as stop:
        run_sft(tmp_path / "base", tmp_path / "out", "--check", "true")
    assert stop.value.code == 0


def test_the_check_without_an_image_folder_says_so(run_recipe, stage_1, data, tmp_path):
    arguments = ["--model_name_or_path", stage_1, "--train_file", data / "chats.jsonl", "--output_dir", tmp_path]
    with pytest.raises(ImageFolderNeededError):
        run_recipe("sft_tiny_cpu", *arguments, "--check", "true")


def test_the_check_of_good_data_ends_well(run_pretrain, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run_pretrain(tmp_path, "--check", "true")
    assert stop.value.code == 0


def test_the_check_of_data_whose_pictures_are_under_an_unknown_name_has_something_to_mend(
    run_sft, stage_1, tmp_path, caplog
):
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"img": "1.png", "messages": messages}) + "\n")
    with pytest.raises(SystemExit) as stop:
        run_sft(stage_1, tmp_path / "out", "--check", "true", "--train_file", tmp_path / "data.jsonl")
    report = json.loads((tmp_path / "out" / "data_check.json").read_text())
    assert stop.value.code == 1 and "'img'" in report["problems"][0]
    assert (report["rows_with_images"], report["images"], report["text_only_rows"]) == (0, 0, 1)
