"""Saved repositories: with the package and without it, from a folder and from a Hub, through the real client."""

import json
from pathlib import Path

import numpy
import pytest
import torch

from .hub_server import LoopbackHub
from .tolerance import assert_close


ROOT = Path(__file__).parent.parent

# What a stranger runs. The first line of each makes sure that the package is, or is not, there
WITH_PACKAGE = "import aligngpt\n"
WITHOUT_PACKAGE = "import sys; sys.modules['aligngpt'] = None\n"
REPO = "tester/aligngpt-tiny"

LOAD = """
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
source, options = {source!r}, {options!r}
config = AutoConfig.from_pretrained(source, **options)
backbone = AutoModel.from_pretrained(source, **options)
model = AutoModelForImageTextToText.from_pretrained(source, **options)
processor = AutoProcessor.from_pretrained(source, **options)
inputs = torch.load("inputs.pt")
again = processor(images=inputs.pop("image"), text=inputs.pop("text"), return_tensors="pt")
assert all(torch.equal(again[name], inputs[name]) for name in inputs), again
with torch.no_grad():
    hidden = backbone(**inputs).last_hidden_state
    outputs = model(**inputs)
torch.testing.assert_close(model.lm_head(hidden), outputs.logits)
content = [{{"type": "image"}}, {{"type": "text", "text": "What?"}}]
torch.save({{
    "logits": outputs.logits,
    "weights": outputs.alignment_weights,
    "chat": processor.apply_chat_template([{{"role": "user", "content": content}}], add_generation_prompt=True),
    "version": config.aligngpt_version,
    "modules": [type(part).__module__ for part in (config, model, processor)],
}}, "outputs.pt")
"""

PIPELINE = """
from transformers import pipeline
import torch
pipe = pipeline("image-text-to-text", model={source!r}, **{options!r})
from PIL import Image
image = Image.fromarray(torch.load("inputs.pt")["image"].numpy())
content = [{{"type": "image", "image": image}}, {{"type": "text", "text": "What is this?"}}]
chat = [{{"role": "user", "content": content}}]
print(pipe(text=chat, max_new_tokens=4, return_full_text=False)[0]["generated_text"].__class__.__name__)
print(len(pipe(text="<image> a cat", images=image, max_new_tokens=4)))
"""


@pytest.fixture
def expected(model, processor, make_image, tmp_path):
    """Logits of the model before it was saved; inputs for the other process are in its folder."""
    image, text = make_image(0), "USER: <image>\nWhat is this? ASSISTANT:"
    inputs = dict(processor(images=image, text=text, return_tensors="pt"))
    pixels = torch.from_numpy(numpy.array(image))  # torch.load takes no PIL objects
    torch.save({**inputs, "image": pixels, "text": text}, tmp_path / "inputs.pt")
    with torch.no_grad():
        outputs = model(**inputs)
    return {"logits": outputs.logits, "weights": outputs.alignment_weights}


def check_outputs(folder, expected):
    outputs = torch.load(folder / "outputs.pt")
    for name, tensor in expected.items():
        assert_close(outputs[name], tensor)
    assert outputs["chat"].startswith("<s>A chat between") and outputs["version"] == "0.1.0"
    return outputs


class TestFolder:
    def test_the_configuration_names_the_code_of_all_classes(self, checkpoint):
        config = json.loads((checkpoint / "config.json").read_text())
        assert config["auto_map"] == {
            "AutoConfig": "configuration_aligngpt.AlignGPTConfig",
            "AutoModel": "modeling_aligngpt.AlignGPTModel",
            "AutoModelForImageTextToText": "modeling_aligngpt.AlignGPTForConditionalGeneration",
            "AutoModelForMultimodalLM": "modeling_aligngpt.AlignGPTForConditionalGeneration",
            "AutoProcessor": "processing_aligngpt.AlignGPTProcessor",
        }
        assert config["aligngpt_version"] == "0.1.0"
        for name in config["auto_map"].values():
            assert (checkpoint / f"{name.split('.')[0]}.py").is_file()

    def test_the_code_brings_its_licence(self, checkpoint):
        assert (checkpoint / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
        for name in ("configuration_aligngpt.py", "modeling_aligngpt.py"):
            assert "Apache License, Version 2.0" in (checkpoint / name).read_text().splitlines()[0]

    def test_a_model_is_saved_without_a_licence_where_the_package_is_not_installed(self, model, tmp_path, monkeypatch):
        monkeypatch.setattr("aligngpt.configuration_aligngpt.distributions", lambda name: [])
        model.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").is_file() and not (tmp_path / "LICENSE").exists()

    def test_a_licence_that_is_there_stays(self, model, tmp_path):
        (tmp_path / "LICENSE").write_text("Llama 2 Community License")
        model.save_pretrained(tmp_path)
        assert (tmp_path / "LICENSE").read_text() == "Llama 2 Community License"

    def test_it_loads_with_the_package_by_the_auto_classes(self, checkpoint, expected, run_python, tmp_path):
        run_python(WITH_PACKAGE + LOAD.format(source=str(checkpoint), options={}), tmp_path)
        modules = check_outputs(tmp_path, expected)["modules"]
        assert all(module.startswith("aligngpt.") for module in modules)

    def test_it_loads_without_the_package_by_trusting_its_code(self, checkpoint, expected, run_python, tmp_path):
        code = WITHOUT_PACKAGE + LOAD.format(source=str(checkpoint), options={"trust_remote_code": True})
        run_python(code, tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules"))
        modules = check_outputs(tmp_path, expected)["modules"]
        assert all(module.startswith("transformers_modules.") for module in modules)

    @pytest.mark.parametrize(
        ("first_line", "options"),
        [(WITH_PACKAGE, {}), (WITHOUT_PACKAGE, {"trust_remote_code": True})],
        ids=["with", "without"],
    )
    def test_the_pipeline_answers(self, checkpoint, expected, run_python, tmp_path, first_line, options):
        code = first_line + PIPELINE.format(source=str(checkpoint), options=options)
        printed = run_python(code, tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules"))
        assert printed.split() == ["str", "1"]

    def test_a_model_that_was_loaded_by_its_code_saves_a_repository_like_the_first(
        self, checkpoint, expected, run_python, tmp_path
    ):
        code = WITHOUT_PACKAGE + (
            "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
            f"for auto in (AutoModelForImageTextToText, AutoProcessor):\n"
            f"    auto.from_pretrained({str(checkpoint)!r}, trust_remote_code=True).save_pretrained('again')\n"
        )
        run_python(code, tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules"))
        for name in ("config.json", "processor_config.json", "tokenizer.json", "modeling_aligngpt.py"):
            assert (tmp_path / "again" / name).read_text() == (checkpoint / name).read_text(), name
        code = WITHOUT_PACKAGE + LOAD.format(source="./again", options={"trust_remote_code": True})
        run_python(code, tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules2"))
        check_outputs(tmp_path, expected)

    def test_saving_and_loading_in_the_same_process_keeps_the_logits(self, model, expected, tmp_path):
        inputs = torch.load(tmp_path / "inputs.pt")
        model.save_pretrained(tmp_path / "saved", max_shard_size="50KB")
        loaded = type(model).from_pretrained(tmp_path / "saved")
        weights = model.state_dict()
        assert loaded.state_dict().keys() == weights.keys()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())
        with torch.no_grad():
            logits = loaded(**{name: inputs[name] for name in inputs if name not in ("image", "text")}).logits
        assert_close(logits, expected["logits"])


PUSH = (
    WITH_PACKAGE
    + """
from transformers import AutoModelForImageTextToText, AutoProcessor
for auto in (AutoModelForImageTextToText, AutoProcessor):
    auto.from_pretrained({checkpoint!r}).push_to_hub({repo!r}, private=True)
"""
)


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


class TestHub:
    def test_a_pushed_private_model_is_pulled_by_a_stranger_with_equal_logits(
        self, hub, checkpoint, expected, run_python, tmp_path
    ):
        run_python(PUSH.format(checkpoint=str(checkpoint), repo=REPO), tmp_path, environment(hub, "write", tmp_path))
        assert hub.repos[REPO].private
        assert hub.files(REPO)["LICENSE"] == (ROOT / "LICENSE").read_bytes()
        revision = hub.repos[REPO].branches["main"]
        # With the package, at a revision, with a read token
        code = WITH_PACKAGE + LOAD.format(source=REPO, options={"revision": revision})
        run_python(code, tmp_path, environment(hub, "read", tmp_path))
        check_outputs(tmp_path, expected)
        # Without it, from main
        code = WITHOUT_PACKAGE + LOAD.format(source=REPO, options={"trust_remote_code": True})
        run_python(code, tmp_path, environment(hub, "read", tmp_path))
        check_outputs(tmp_path, expected)

    @pytest.mark.parametrize(
        ("token", "message"), [("nonsense", "Invalid credentials"), (None, "is not a valid model identifier")]
    )
    def test_without_a_good_token_a_private_model_stays_hidden(
        self, hub, checkpoint, run_python, tmp_path, token, message
    ):
        run_python(PUSH.format(checkpoint=str(checkpoint), repo=REPO), tmp_path, environment(hub, "write", tmp_path))
        code = WITH_PACKAGE + (
            "from transformers import AutoModelForImageTextToText\n"
            f"try:\n    AutoModelForImageTextToText.from_pretrained({REPO!r})\n"
            "except OSError as error:\n    print(error)"
        )
        assert message in run_python(code, tmp_path, environment(hub, token, tmp_path / "other"))

    def test_an_upload_that_fails_half_way_is_repeated_without_sending_anything_twice(
        self, hub, checkpoint, expected, run_python, tmp_path
    ):
        code = WITH_PACKAGE + (
            "from transformers import AutoModelForImageTextToText\n"
            f"model = AutoModelForImageTextToText.from_pretrained({str(checkpoint)!r})\n"
            f"try:\n    model.push_to_hub({REPO!r}, max_shard_size='50KB')\n    print('pushed')\n"
            "except Exception as error:\n    print('failed')"
        )
        hub.fail_uploads(after=1)
        assert "failed" in run_python(code, tmp_path, environment(hub, "write", tmp_path))
        assert not hub.files(REPO), "a failed push must not show"
        hub.heal()
        assert "pushed" in run_python(code, tmp_path, environment(hub, "write", tmp_path))
        assert len(hub.uploaded) == len(set(hub.uploaded)) >= 3
        run_python(
            WITH_PACKAGE
            + f"from transformers import AutoProcessor\nAutoProcessor.from_pretrained({str(checkpoint)!r})"
            f".push_to_hub({REPO!r})",
            tmp_path,
            environment(hub, "write", tmp_path),
        )
        code = WITH_PACKAGE + LOAD.format(source=REPO, options={})
        run_python(code, tmp_path, environment(hub, "read", tmp_path / "fresh"))
        check_outputs(tmp_path, expected)


def environment(hub, token, cache):
    """The environment of a client of the Hub, with a token by its name or as it is."""
    return hub.env(token=token, cache=str(cache / "hub"))
