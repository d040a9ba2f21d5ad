"""LoRA and QLoRA in stage 2: what is adapted, saved, loaded again, merged."""

import json
import shutil
import sys

import bitsandbytes
import pytest
import torch
from peft import AutoPeftModelForCausalLM, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
from trl import ModelConfig

from aligngpt.__main__ import main
from aligngpt.training.merge import load_adapter
from aligngpt.training.stages import get_lora_config


LORA = ["--use_peft", "true", "--lora_r", "4", "--lora_dropout", "0"]
QLORA = [*LORA, "--load_in_4bit", "true", "--use_bnb_nested_quant", "true", "--dtype", "bfloat16", "--bf16", "true"]


@pytest.fixture(scope="module", autouse=True)
def wide_enough_for_bitsandbytes():
    """Its kernels for CPUs with AVX512-BF16 need wider weights than ours, and give wrong merges after evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
        yield


@pytest.fixture(scope="module")
def adapter(run_sft, stage_1, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    return folder, run_sft(stage_1, folder, *LORA).model.eval()


@pytest.fixture(scope="module")
def quantized_adapter(run_sft, stage_1, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized_adapter")
    return folder, run_sft(stage_1, folder, *QLORA).model.eval()


@pytest.fixture
def inputs(processor, make_image):
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": make_image(0)}, {"type": "text", "text": "Blue?"}]}],
        [{"role": "user", "content": "Blue?"}],
    ]
    return processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )


def get_logits(model, inputs):
    with torch.no_grad():
        return model.eval()(**{**inputs, "pixel_values": inputs["pixel_values"].to(model.dtype)}).logits.float()


def test_lora_adapts_the_language_model_alone_and_trains_projector_and_gate_whole(adapter):
    names = set(load_file(adapter[0] / "adapter_model.safetensors"))
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    adapted = {name for name in names if ".lora_" in name}
    assert len(adapted) == 2 * 2 * len(modules), "A and B, two layers"
    assert all(".language_model.layers." in name for name in adapted)
    whole = {name.removeprefix("base_model.model.model.") for name in names - adapted}
    assert whole == {
        f"{module}.linear_{number}.{kind}"
        for module in ("multi_modal_projector", "alignment_gate")
        for number in (1, 2)
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("kind", ["adapter", "quantized_adapter"])
def test_everything_in_the_adapter_was_trained(kind, request, stage_1):
    folder, model = request.getfixturevalue(kind)
    before = AutoModelForImageTextToText.from_pretrained(stage_1).state_dict()
    for name, weight in load_file(folder / "adapter_model.safetensors").items():
        assert weight.dtype == torch.float32
        if ".lora_B" in name:
            assert weight.any(), f"{name} is as it was made"
        elif ".lora_" not in name:
            assert not torch.equal(weight, before[name.removeprefix("base_model.model.")]), f"{name} is as before"


def test_the_adapter_alone_reloads_to_equal_logits(adapter, inputs):
    folder, trained = adapter
    expected = get_logits(trained, inputs)
    torch.testing.assert_close(get_logits(AutoModelForImageTextToText.from_pretrained(folder), inputs), expected)
    torch.testing.assert_close(get_logits(load_adapter(str(folder))[0], inputs), expected)
    assert AutoProcessor.from_pretrained(folder).image_processor.do_pad


def test_peft_s_auto_class_loads_base_and_adapter(adapter, inputs):
    folder, trained = adapter
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(get_logits(model, inputs), get_logits(trained, inputs))
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), trained.generate(**inputs, **options))


def test_an_adapter_of_a_relative_base_is_loaded_from_another_folder(
    run_sft, stage_1, inputs, tmp_path, monkeypatch, run_python
):
    monkeypatch.chdir(stage_1.parent)
    trained = run_sft(stage_1.name, tmp_path / "adapter", *LORA, "--max_steps", "1").model
    (tmp_path / "elsewhere").mkdir()
    torch.save(dict(inputs), tmp_path / "elsewhere" / "inputs.pt")
    code = (
        "import aligngpt, torch\n"
        "from transformers import AutoModelForImageTextToText\n"
        "model = AutoModelForImageTextToText.from_pretrained('../adapter')\n"
        "torch.save(model(**torch.load('inputs.pt')).logits.detach(), 'logits.pt')"
    )
    run_python(code, tmp_path / "elsewhere")
    logits = torch.load(tmp_path / "elsewhere" / "logits.pt")
    torch.testing.assert_close(logits, get_logits(trained, inputs), atol=1e-4, rtol=1e-4)


def test_a_base_on_the_hub_keeps_its_id(model):
    model.name_or_path = "someone/aligngpt-7b-pretrain"
    peft_model = get_peft_model(model, get_lora_config(model, ModelConfig(use_peft=True)))
    assert peft_model.peft_config["default"].base_model_name_or_path == "someone/aligngpt-7b-pretrain"


def test_the_merged_model_gives_the_adapter_s_logits_without_peft(adapter, inputs, tmp_path, run_python, monkeypatch):
    folder, trained = adapter
    monkeypatch.setattr(sys, "argv", ["aligngpt", "merge", str(folder), "--out", str(tmp_path / "merged")])
    main()
    torch.save(dict(inputs), tmp_path / "inputs.pt")
    code = (
        "import sys, torch; sys.modules['peft'] = None\n"
        "from transformers import AutoModelForImageTextToText\n"
        "model = AutoModelForImageTextToText.from_pretrained('merged', trust_remote_code=True)\n"
        "torch.save(model(**torch.load('inputs.pt')).logits.detach(), 'logits.pt')"
    )
    run_python(code, tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), get_logits(trained, inputs), atol=1e-4, rtol=1e-4)
    assert [stage["stage"] for stage in json.loads((tmp_path / "merged" / "training_stages.json").read_text())] == [
        "pretrain",
        "sft",
    ]


def test_an_adapter_of_another_model_is_refused(adapter, tmp_path):
    shutil.copytree(adapter[0], tmp_path / "other")
    weights = load_file(tmp_path / "other" / "adapter_model.safetensors")
    renamed = {name.replace("layers.1.", "layers.7."): weight for name, weight in weights.items()}
    save_file(renamed, tmp_path / "other" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="does not fit its base: weights of one side only.*layers.7"):
        load_adapter(str(tmp_path / "other"))


def test_qlora_quantises_the_language_model_s_blocks_alone(quantized_adapter):
    model = quantized_adapter[1].get_base_model()
    quantised = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert quantised and all(name.startswith("model.language_model.layers.") for name in quantised)
    config = model.config.quantization_config
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_a_base_in_4_bits_is_served_with_the_adapter(quantized_adapter, stage_1, inputs):
    folder, trained = quantized_adapter
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    served, _ = load_adapter(str(folder), quantization_config=config, dtype=torch.bfloat16, device_map="cpu")
    with torch.autocast("cpu", torch.bfloat16):  # the run's model holds what it trained in float32
        expected = get_logits(trained, inputs)
    torch.testing.assert_close(get_logits(served, inputs), expected, atol=0.2, rtol=0.05)


def test_an_adapter_of_a_4_bit_base_is_merged_into_full_precision(quantized_adapter, inputs, tmp_path, monkeypatch):
    folder, _ = quantized_adapter
    command = ["aligngpt", "merge", "--adapter", str(folder), "--out", str(tmp_path / "merged")]
    monkeypatch.setattr(sys, "argv", command)
    main()
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert not getattr(merged, "is_quantized", False) and merged.dtype == torch.float32
    full, _ = load_adapter(str(folder))
    torch.testing.assert_close(get_logits(merged, inputs), get_logits(full, inputs), atol=1e-4, rtol=1e-4)


def test_other_targets_are_leaves_of_the_language_model(run_sft, stage_1, tmp_path):
    run_sft(stage_1, tmp_path, *LORA, "--lora_target_modules", "q_proj", "v_proj")
    names = {name for name in load_file(tmp_path / "adapter_model.safetensors") if ".lora_" in name}
    assert len(names) == 2 * 2 * 2
    assert all(".language_model.layers." in name and ("q_proj" in name or "v_proj" in name) for name in names)


def test_one_target_is_a_target(run_sft, stage_1, tmp_path):
    run_sft(stage_1, tmp_path, *LORA, "--lora_target_modules", "q_proj")
    names = {name for name in load_file(tmp_path / "adapter_model.safetensors") if ".lora_" in name}
    assert len(names) == 2 * 2 and all(".language_model.layers." in name and "q_proj" in name for name in names)


@pytest.mark.parametrize("flag", [("--alignment_mode", "average"), ("--random_alignment_embeddings", "true")])
def test_an_adapter_of_an_ablation_is_refused_since_it_would_not_hold_it(run_sft, stage_1, tmp_path, flag):
    with pytest.raises(ValueError, match="An adapter does not hold the ablation's configuration"):
        run_sft(stage_1, tmp_path, *LORA, *flag)


def test_pushing_an_adapter_whose_base_is_a_folder_is_refused_before_training(run_sft, stage_1, tmp_path):
    with pytest.raises(ValueError, match="Nobody else can load an adapter of the folder"):
        run_sft(stage_1, tmp_path, *LORA, "--push_to_hub", "true")


def test_an_adapter_is_no_checkpoint_to_start_from(run_sft, adapter, tmp_path):
    with pytest.raises(ValueError, match="is an adapter: make a model of it and its base first, by `aligngpt merge`"):
        run_sft(adapter[0], tmp_path)


@pytest.mark.parametrize("first", ["adapter", "stage_2"])
def test_model_and_adapter_are_not_written_into_one_folder(first, run_sft, stage_1, request, tmp_path):
    folder = request.getfixturevalue(first)
    shutil.copytree(folder[0] if first == "adapter" else folder, tmp_path / "out")
    with pytest.raises(ValueError, match="name another output_dir"):
        run_sft(stage_1, tmp_path / "out", *([] if first == "adapter" else LORA))
