"""Chat templates: what they write, against strings written by hand."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from aligngpt.processing.chat_templates import CHAT_TEMPLATES, load_chat_template


VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)
CHAT = [
    {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "On a mat."},
]
EXPECTED = {
    "vicuna_v1": "<s>" + VICUNA_SYSTEM + "USER: <image>\nWhat is it? ASSISTANT:[ A cat.</s>]"
    "USER: Where? ASSISTANT:[ On a mat.</s>]",
    "plain": "<s><image>[A cat.\n][On a mat.\n]",
    "chatml": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n[A cat.<|im_end|>]\n"
    "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n[On a mat.<|im_end|>]\n",
    "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat is it?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n[A cat.<|eot_id|>]"
    "<|start_header_id|>user<|end_header_id|>\n\nWhere?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n[On a mat.<|eot_id|>]",
    "gemma": "<s><start_of_turn>user\n<image>\nWhat is it?<end_of_turn>\n<start_of_turn>model\n[A cat.<end_of_turn>]\n"
    "<start_of_turn>user\nWhere?<end_of_turn>\n<start_of_turn>model\n[On a mat.<end_of_turn>]\n",
    "phi3": "<|user|>\n<image>\nWhat is it?<|end|>\n<|assistant|>\n[A cat.<|end|>]\n"
    "<|user|>\nWhere?<|end|>\n<|assistant|>\n[On a mat.<|end|>]\n",
    "mistral": "<s>[INST] <image>\nWhat is it? [/INST][ A cat.</s>][INST] Where? [/INST][ On a mat.</s>]",
}
GENERATION_PROMPTS = {
    "vicuna_v1": "ASSISTANT:",
    "plain": "",
    "chatml": "<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "",
    "gemma": "<start_of_turn>model\n",
    "phi3": "<|assistant|>\n",
}


def render(name, messages, mark=True, **options):
    """The rendered chat; with `mark`, generation spans in brackets."""
    [text], spans = render_jinja_template(
        conversations=[messages],
        chat_template=load_chat_template(name),
        return_assistant_tokens_mask=mark,
        bos_token="<s>",
        eos_token="</s>",
        **options,
    )
    for start, end in reversed(spans[0] if mark else []):
        text = f"{text[:start]}[{text[start:end]}]{text[end:]}"
    return text


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_chat_is_written_as_the_family_writes_it(name):
    assert render(name, CHAT) == EXPECTED[name]


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_the_prompt_is_the_beginning_of_the_training_text(name):
    prompt = render(name, CHAT[:3], mark=False, add_generation_prompt=True)
    assert prompt.endswith(GENERATION_PROMPTS[name])
    assert render(name, CHAT, mark=False).startswith(prompt)


@pytest.mark.parametrize("name", [name for name in CHAT_TEMPLATES if name != "plain"])
def test_a_system_message_takes_the_place_of_the_default(name):
    text = render(name, [{"role": "system", "content": "Be brief."}, *CHAT[:1]], mark=False)
    assert text.count("Be brief.") == 1 and "curious" not in text and "helpful" not in text
    assert text.index("<image>") < text.index("What is it?")


def test_vicunas_system_prompt_can_be_left_out():
    text = render("vicuna_v1", [{"role": "system", "content": ""}, *CHAT[2:]], mark=False)
    assert text == "<s>USER: Where? ASSISTANT: On a mat.</s>"


@pytest.mark.parametrize("name", ["vicuna_v1", "mistral"])
def test_a_role_that_a_template_lacks_is_an_error(name):
    with pytest.raises(Exception, match="roles of this template"):
        render(name, [*CHAT, {"role": "tool", "content": "42"}])


def test_an_unknown_template_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="'alpaca'; the packaged ones are vicuna_v1, plain"):
        load_chat_template("alpaca")
