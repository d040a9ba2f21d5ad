"""Both training scripts, run for a few steps with the tiny recipes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from aligngpt.processing.command_output import Mistakes
from aligngpt.training import sft
from aligngpt.training.arguments import find_recipe
from aligngpt.training.stages import hold_trained_in_float32
from aligngpt.weights.composing import compose


def load_weights(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()


def changed(before, after):
    return {name for name in after if not torch.equal(before[name], after[name])}


def test_stage_1_changes_exactly_projector_and_embeddings(stage_1, vision_folder, text_folder):
    set_seed(42)  # the recipe's: the new modules start from it
    before, after = compose(str(vision_folder), str(text_folder))[0].state_dict(), load_weights(stage_1)
    trained = ("model.multi_modal_projector.", "model.alignment_embeddings.")
    assert changed(before, after) == {name for name in after if name.startswith(trained)}


def test_stage_2_changes_exactly_projector_language_model_and_gate(stage_1, stage_2):
    before, after = load_weights(stage_1), load_weights(stage_2)
    trained = ("model.multi_modal_projector.", "model.language_model.", "lm_head.", "model.alignment_gate.")
    assert changed(before, after) == {name for name in after if name.startswith(trained)}


TEXT_ATTENTION = "model.alignment_gate.text_attention.weight"


@pytest.mark.parametrize(
    ("flag", "module"),
    [("train_vision_tower", "model.vision_tower."), ("train_alignment_embeddings", "model.alignment_embeddings.")],
)
def test_a_flag_unfreezes_one_more_module_in_stage_2(run_sft, stage_1, tmp_path, flag, module):
    run_sft(stage_1, tmp_path, f"--{flag}", "true")
    before, after = load_weights(stage_1), load_weights(tmp_path)
    assert any(name.startswith(module) for name in changed(before, after))


def test_the_ablations_of_stage_2_are_saved_with_the_model(run_sft, stage_1, tmp_path):
    arguments = [
        "--alignment_mode",
        "average",
        "--alignment_gate_text",
        "all",
        "--random_alignment_embeddings",
        "true",
    ]
    run_sft(stage_1, tmp_path, *arguments)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["alignment_mode"], config["alignment_gate_text"]) == ("average", "all")
    before, after = load_weights(stage_1), load_weights(tmp_path)
    differing = changed(before, after)
    assert "model.alignment_embeddings.weight" in differing
    assert not any("alignment_gate" in name for name in differing), "there is no gate in this mode"


def test_another_gate_is_trained_and_saved_with_the_model(run_sft, stage_1, tmp_path):
    arguments = ["--alignment_gate_query", "attention", "--alignment_gate_input", "cosine"]
    run_sft(stage_1, tmp_path, *arguments, "--alignment_gate_temperature", "0.5", "--max_steps", "2")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    gate, fields = model.model.alignment_gate, ("query", "input", "temperature")
    assert [getattr(model.config, f"alignment_gate_{name}") for name in fields] == ["attention", "cosine", 0.5]
    torch.testing.assert_close(gate.text_attention.weight, load_weights(tmp_path)[TEXT_ATTENTION])
    assert not load_weights(stage_1).keys() & {TEXT_ATTENTION}


def test_both_outputs_load_through_the_auto_classes_and_answer(stage_1, stage_2, make_image):
    for folder in (stage_1, stage_2):
        model = AutoModelForImageTextToText.from_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder)
        inputs = processor(images=make_image(0), text="<image> cat", return_tensors="pt")
        assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]
        assert processor.chat_template.keys() == {"default", "plain"}
    assert processor.image_processor.do_pad, "stage 2 pads to a square"


def test_in_bf16_what_trains_is_held_in_float32_and_learns(run_pretrain, tmp_path):
    arguments = ["--dtype", "bfloat16", "--bf16", "true", "--learning_rate", "1e-6"]
    run_pretrain(tmp_path, *arguments, "--save_strategy", "steps", "--save_steps", "3")
    weights = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    trained = {name for name, weight in weights.items() if weight.dtype == torch.float32}
    assert trained and all("multi_modal_projector" in name or "alignment_embeddings" in name for name in trained)
    weight = weights["multi_modal_projector.linear_1.weight"]
    assert not torch.equal(weight.bfloat16().float(), weight), "the steps are smaller than bf16 can tell apart"
    assert {w.dtype for w in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}, "the result"


def test_half_precision_without_autocast_is_refused(run_pretrain, tmp_path):
    with pytest.raises(Mistakes, match="--dtype bfloat16: .* add --dtype float32, or set bf16 to true"):
        run_pretrain(tmp_path, "--dtype", "bfloat16")
    with pytest.raises(ValueError, match="The model is in torch.bfloat16: set bf16 or fp16 to true"):
        hold_trained_in_float32(torch.nn.Linear(2, 2).bfloat16().requires_grad_(False), autocast=False)


@pytest.mark.parametrize("flag", ["use_peft", "load_in_4bit"])
def test_stage_1_refuses_what_it_cannot_train_with_the_reason(run_pretrain, tmp_path, flag):
    with pytest.raises(ValueError, match="Stage 1 trains the projector and the alignment embeddings, and no adapter"):
        run_pretrain(tmp_path, f"--{flag}", "true")


def test_learning_rates_of_projector_and_gate_are_their_own(run_sft, stage_1, tmp_path):
    trainer = run_sft(
        stage_1, tmp_path, "--projector_learning_rate", "1e-4", "--gate_learning_rate", "1e-2", "--max_steps", "1"
    )
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {names[id(p)]: group["initial_lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, rate in rates.items():
        assert rate == (1e-4 if "projector" in name else 1e-2 if "alignment_gate" in name else 3e-3), name
    assert rates.keys() == {name for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_streamed_rows_in_workers_train(run_sft, stage_1, data, tmp_path):
    trainer = run_sft(stage_1, tmp_path, "--streaming", "true", "--dataloader_num_workers", "1")
    assert trainer.state.global_step == 3


def test_streamed_rows_cannot_be_grouped(run_sft, stage_1, tmp_path):
    with pytest.raises(ValueError, match="Streamed rows cannot be grouped"):
        run_sft(stage_1, tmp_path, "--streaming", "true", "--group_by_modality_length", "true")


def test_an_evaluation_file_gives_a_loss(run_sft, stage_1, data, tmp_path):
    trainer = run_sft(
        stage_1, tmp_path, "--eval_file", data / "chats.jsonl", "--eval_strategy", "steps", "--eval_steps", "2"
    )
    assert [log["step"] for log in trainer.state.log_history if "eval_loss" in log] == [2, 3]


def test_stage_2_of_another_model_is_refused_with_what_to_do(run_sft, text_folder, tmp_path):
    with pytest.raises(ValueError, match="is no AlignGPT, but of type 'llama': `aligngpt convert`"):
        run_sft(text_folder, tmp_path)


def test_different_numbers_of_levels_are_refused(run_pretrain, checkpoint, data, tmp_path):
    with pytest.raises(ValueError, match="differ: the model has 8, asked for were 4"):
        run_pretrain(tmp_path, "--model_name_or_path", checkpoint, "--num_alignment_levels", "4", parts=False)
    (tmp_path / "levels").mkdir()
    (tmp_path / "levels" / "pairs.json").write_text(json.dumps([{"image": "0.png", "caption": "a", "similarity": 1}]))
    (tmp_path / "levels" / "alignment_levels.json").write_text(json.dumps({"num_levels": 4}))
    with pytest.raises(ValueError, match="differ: the model has 8, the data were cut into 4"):
        run_pretrain(tmp_path / "out", "--data", tmp_path / "levels")


def test_pretraining_needs_a_model_or_its_two_parts(run_pretrain, tmp_path):
    with pytest.raises(ValueError, match="Name a composed model"):
        run_pretrain(tmp_path, parts=False)


def test_a_recipe_that_does_not_exist_lists_those_that_do():
    with pytest.raises(FileNotFoundError, match="no file llama.*pretrain_7b"):
        find_recipe(["--config", "llama"])


def test_the_scripts_run_as_modules_and_as_files():
    for command in (["-m", "aligngpt.training.pretrain"], [str(Path(sft.__file__))]):
        result = subprocess.run([sys.executable, *command, "--help"], capture_output=True, text=True, check=True)
        assert "--data" in result.stdout


def test_stage_2_pads_images_to_a_square_and_stage_1_crops_them(run_pretrain, run_sft, stage_1, tmp_path):
    wide = Image.new("RGB", (32, 16))
    wide.paste((255, 255, 255), (0, 0, 4, 16))  # a mark at the left edge, which cropping cuts off
    for trainer, is_seen in ((run_pretrain(tmp_path / "1"), False), (run_sft(stage_1, tmp_path / "2"), True)):
        rows = [
            {"images": [wide], "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "x"}]}
        ]
        rows[0]["alignment_level"] = 0
        pixels = trainer.data_collator(rows)["pixel_values"]
        assert (pixels.amax() > 1.5) == is_seen
