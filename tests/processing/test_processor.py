"""The processor: placeholders, types of tokens, images, chats and bad input."""

import numpy as np
import pytest
import torch

from aligngpt import AlignGPTProcessor

from ..tolerance import assert_close  # noqa: TID252
from ..versions import before_transformers, since_transformers  # noqa: TID252


@pytest.fixture
def chat(make_image):
    """Two turns about one image."""
    return [
        {
            "role": "user",
            "content": [{"type": "image", "image": make_image(0)}, {"type": "text", "text": "What is it?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "12 cats."}]},
        {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "On a mat."}]},
    ]


def tokens_of(processor, inputs, row=0):
    return processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][row])


class TestPlaceholders:
    def test_align_comes_right_after_bos_in_texts_with_an_image(self, processor, make_image):
        inputs = processor(images=make_image(0), text="USER: <image>\nWhat is it? ASSISTANT:")
        tokens = tokens_of(processor, inputs)
        assert tokens[:2] == ["<s>", "<align>"]
        assert tokens.count("<image>") == 16 and tokens.count("<align>") == 1

    def test_a_text_without_an_image_has_no_align(self, processor):
        assert "<align>" not in tokens_of(processor, processor(text="Is the sky blue?"))

    def test_align_comes_first_where_there_is_no_bos(self, processor, make_image):
        tokens = tokens_of(processor, processor(images=make_image(0), text="<image> a cat", add_special_tokens=False))
        assert tokens[:2] == ["<align>", "<image>"]

    def test_bos_written_by_hand_or_by_the_tokenizer_gives_the_same_ids(self, processor, make_image):
        by_tokenizer = processor(images=make_image(0), text="<image> a cat")
        by_hand = processor(images=make_image(0), text="<s><image> a cat")
        with_align = processor(images=make_image(0), text="<s><align><image> a cat")
        assert by_tokenizer["input_ids"] == by_hand["input_ids"] == with_align["input_ids"]

    def test_bos_is_written_once_in_a_batch_where_only_some_texts_have_it(self, processor, make_image):
        batch = processor(images=[[make_image(0)], []], text=["<s><image> a cat", "a mat"])
        assert [row.count(processor.tokenizer.bos_token_id) for row in batch["input_ids"]] == [1, 1]

    def test_the_number_of_tokens_per_image_is_the_models(self, processor, model):
        count = processor._get_num_multimodal_tokens([(100, 50), (7, 9)])
        assert count.num_image_tokens == [model.config.image_seq_length] * 2


class TestTokenTypes:
    def test_the_gate_reads_text_but_not_bos_placeholders_and_padding(self, processor, make_image):
        inputs = processor(
            images=[[make_image(0)], [make_image(1)]], text=["<image> a cat", "<image>\na longer text"], padding=True
        )
        tokens = tokens_of(processor, inputs)
        read = [token for token, kind in zip(tokens, inputs["token_type_ids"][0], strict=True) if kind]
        assert read == processor.tokenizer.tokenize(" a cat")
        assert tokens[0] == "<unk>", "the first row should be padded"

    def test_a_row_without_an_image_has_nothing_to_read(self, processor, make_image):
        inputs = processor(images=[[make_image(0)], []], text=["<image> a cat", "a mat"])
        assert any(inputs["token_type_ids"][0]) and not any(inputs["token_type_ids"][1])

    @pytest.mark.parametrize("return_tensors", [None, "pt", "np"])
    def test_they_have_the_container_of_the_ids(self, processor, make_image, return_tensors):
        inputs = processor(images=make_image(0), text="<image> a cat", return_tensors=return_tensors)
        assert type(inputs["token_type_ids"]) is type(inputs["input_ids"])

    @pytest.mark.parametrize("return_assistant_tokens_mask", [True, False])
    @pytest.mark.parametrize("return_tensors", ["pt", None])
    def test_assistant_turns_are_not_read(self, processor, chat, return_assistant_tokens_mask, return_tensors):
        inputs = processor.apply_chat_template(
            chat,
            tokenize=True,
            return_dict=True,
            return_tensors=return_tensors,
            return_assistant_tokens_mask=return_assistant_tokens_mask,
        )
        assert ("assistant_masks" in inputs) == return_assistant_tokens_mask
        ids, types = np.asarray(inputs["input_ids"])[0], np.asarray(inputs["token_type_ids"])[0]
        unread = processor.tokenizer.decode(ids[types == 0], skip_special_tokens=True).split()
        assert unread == ["12", "cats.", "On", "a", "mat."]
        read = processor.tokenizer.decode(ids[types == 1])
        assert "What is it?" in read and "Where?" in read and "cats" not in read

    def test_the_prompt_of_a_chat_is_read_as_in_training(self, processor, chat):
        """Training rows and inference prompts give the gate the same tokens."""
        options = {"tokenize": True, "return_dict": True}
        training = processor.apply_chat_template(chat[:2], **options)
        prompt = processor.apply_chat_template(chat[:1], add_generation_prompt=True, **options)
        read = [
            [i for i, kind in zip(inputs["input_ids"][0], inputs["token_type_ids"][0], strict=True) if kind]
            for inputs in (training, prompt)
        ]
        assert read[0] == read[1]


class TestAssistantMask:
    def test_it_covers_the_answers_with_their_end_tokens(self, processor, chat):
        inputs = processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        tokens = tokens_of(processor, inputs)
        masked = [token for token, mask in zip(tokens, inputs["assistant_masks"][0], strict=True) if mask]
        tokenize = processor.tokenizer.tokenize
        # The space before "12" is a token of its own, which the model has to generate: it belongs to the answer
        assert masked == [*tokenize("12 cats."), "</s>", *tokenize("On a mat."), "</s>"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("texts", "counts", "message"),
        [
            (["<image> a", "b"], [1, 1], "Sample 1 has 0 <image> in its text but 1 images"),
            (["<image> a", "<image><image> b"], [1, 1], "Sample 1 has 2 <image> in its text but 1 images"),
            (["a"], [1], "Sample 0 has 0 <image>"),
            (["<image> a", "b"], [1], "1 lists of images for 2 texts"),
        ],
    )
    def test_the_wrong_number_of_images_names_the_sample(self, processor, make_image, texts, counts, message):
        images = [[make_image(i) for i in range(count)] for count in counts]
        with pytest.raises(ValueError, match=message):
            processor(images=images, text=texts)

    def test_a_flat_list_of_the_wrong_length_is_an_error(self, processor, make_image):
        with pytest.raises(ValueError, match="2 <image> tokens and 1 images"):
            processor(images=[make_image(0)], text=["<image> a", "<image> b"])

    def test_a_placeholder_without_images_names_the_sample(self, processor):
        with pytest.raises(ValueError, match="Sample 1 has 1 <image> in its text but 0 images"):
            processor(text=["a", "<image> b"])

    @pytest.mark.parametrize("text", ["<image> <align> a", "<s><align><image><align>"])
    def test_align_anywhere_else_is_an_error(self, processor, make_image, text):
        with pytest.raises(ValueError, match="Sample 0 has a <align> in its text"):
            processor(images=make_image(0), text=text)

    def test_a_processor_that_adds_none_takes_none(self, processor, make_image):
        processor.add_align_token = False
        assert "<align>" not in tokens_of(processor, processor(images=make_image(0), text="<image> a"))
        with pytest.raises(ValueError, match="Sample 0 has a <align> in its text"):
            processor(images=make_image(0), text="<s><align><image> a")

    def test_align_without_an_image_is_an_error(self, processor):
        with pytest.raises(ValueError, match="Sample 0 has a <align> in its text"):
            processor(text="<align> a")

    def test_truncation_that_cuts_image_tokens_is_an_error(self, processor, make_image):
        with pytest.raises(ValueError, match=r"Got ids=\[6\] and text=\[16\]"):
            processor(images=make_image(0), text="<image> a", truncation=True, max_length=8)

    def test_truncation_on_the_left_that_cuts_align_is_an_error(self, processor, make_image):
        processor.tokenizer.truncation_side = "left"
        with pytest.raises(ValueError, match="Sample 0 lost its <align>"):
            processor(images=make_image(0), text="<image>", truncation=True, max_length=17)

    @pytest.mark.parametrize("token", ["<image>", "<align>"])
    @pytest.mark.parametrize("as_list", [True, False])
    def test_a_literal_placeholder_in_a_message_is_refused_by_name(self, processor, chat, token, as_list):
        text = f"What does {token} mean?"
        chat[2]["content"] = [{"type": "text", "text": text}] if as_list else text
        with pytest.raises(ValueError, match=f"Message 2 of conversation 1 has a literal {token}"):
            processor.apply_chat_template([chat[:2], chat], tokenize=True, return_dict=True)

    @since_transformers("5.23", "sanitize_control_tokens")
    def test_a_literal_placeholder_can_be_sanitized(self, processor, chat):
        chat[2]["content"][0]["text"] = "What do <image> and <align> mean?"
        inputs = processor.apply_chat_template(
            chat[:3], tokenize=True, return_dict=True, sanitize_control_tokens=True, add_generation_prompt=True
        )
        tokens = tokens_of(processor, inputs)
        assert tokens.count("<image>") == 16 and tokens.count("<align>") == 1
        assert "What do <image> and <align> mean?" in processor.decode(
            inputs["input_ids"][0], skip_special_tokens=True
        )

    @before_transformers("5.23", "sanitize_control_tokens")
    def test_sanitizing_says_which_transformers_it_needs(self, processor, chat):
        with pytest.raises(ValueError, match="sanitize_control_tokens needs transformers 5.23"):
            processor.apply_chat_template(chat, tokenize=True, return_dict=True, sanitize_control_tokens=True)

    def test_a_tokenizer_without_the_placeholders_is_refused(self, processor, text_folder):
        from transformers import AutoTokenizer

        with pytest.raises(ValueError, match="<image> is not one token of the tokenizer"):
            AlignGPTProcessor(processor.image_processor, AutoTokenizer.from_pretrained(text_folder), patch_size=4)


def test_text_and_images_as_other_trainers_pass_them_see_the_prompts_alignment_vector(model, processor, make_image):
    """TRL's DPO and prompt-completion SFT tokenise the completion apart; GRPO appends zeros to the types."""
    prompt = processor(images=[[make_image(0)]], text=["<s>USER: <image>\nWhat? ASSISTANT:"], return_tensors="pt")
    completion = processor(text=["It is a cat.</s>"], return_tensors="pt", add_special_tokens=False)
    assert not completion["token_type_ids"].any()
    expected = model.get_alignment_weights(**prompt)
    zeros = torch.zeros_like(completion["token_type_ids"])
    whole = {
        name: torch.cat([prompt[name], completion.get(name, zeros)], dim=1)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    with torch.no_grad():
        outputs = model(**whole, pixel_values=prompt["pixel_values"])
        generated = model(**prompt)
    assert_close(outputs.alignment_weights, expected, largest=1.0)
    length = prompt["input_ids"].shape[1]
    assert_close(outputs.logits[:, :length], generated.logits)
    wrong = {**whole, "token_type_ids": None}
    assert (model.get_alignment_weights(**wrong, pixel_values=prompt["pixel_values"]) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["video", "input_text", "tool_use", None])
def test_a_part_that_a_template_would_pass_over_is_refused_by_its_type(kind, processor):
    chat = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": kind, "text": "there"}]}]
    with pytest.raises(ValueError, match=f"Message 0 of conversation 0 has a part of type {kind!r}"):
        processor.apply_chat_template(chat)


def ask(processor, chats, **options):
    return processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}, **options
    )


class TestAlignmentLevel:
    @pytest.mark.parametrize(
        ("level", "expected"), [(3, 3), (0, 0), (7, 7), (-1, -1), ("auto", -1), ("worst", 0), ("best", 7)]
    )
    def test_a_level_is_an_input_of_the_model(self, processor, chat, level, expected):
        inputs = ask(processor, chat, alignment_level=level)
        assert inputs["alignment_levels"].tolist() == [expected] and inputs["alignment_levels"].dtype == torch.long

    def test_each_conversation_of_a_batch_may_have_its_own(self, processor, chat):
        inputs = ask(processor, [chat, chat[:2], chat], alignment_level=["best", None, np.int64(2)])
        assert inputs["alignment_levels"].tolist() == [7, -1, 2]
        assert ask(processor, [chat, chat[:2]], alignment_level=4)["alignment_levels"].tolist() == [4, 4]

    def test_nothing_else_of_the_inputs_changes(self, processor, chat):
        expected, inputs = ask(processor, chat), ask(processor, chat, alignment_level=5)
        assert inputs.keys() - expected.keys() == {"alignment_levels"}
        assert all(torch.equal(inputs[name], expected[name]) for name in expected)

    def test_lists_get_a_list(self, processor, chat):
        inputs = processor.apply_chat_template(
            chat, alignment_level=5, tokenize=True, return_dict=True, return_tensors=None
        )
        assert inputs["alignment_levels"] == [5]

    @pytest.mark.parametrize("level", [8, -2, "7", "good", True, 2.0])
    def test_one_that_the_model_does_not_have_is_refused_with_the_range(self, processor, chat, level):
        with pytest.raises(ValueError, match=r"The alignment level is .*; it can be 0\.\.7"):
            ask(processor, chat, alignment_level=level)

    def test_as_many_as_conversations_are_needed(self, processor, chat):
        with pytest.raises(ValueError, match="2 alignment levels for 3 conversations"):
            ask(processor, [chat, chat, chat], alignment_level=[1, 2])

    @pytest.mark.parametrize("options", [{"tokenize": False}, {"tokenize": True, "return_dict": False}])
    def test_an_output_without_a_place_for_it_is_refused(self, processor, chat, options):
        with pytest.raises(ValueError, match="alignment_level is no text"):
            processor.apply_chat_template(chat, alignment_level=5, **options)

    def test_the_number_of_levels_is_kept_with_the_processor(self, processor, chat, tmp_path):
        processor.num_alignment_levels = 4
        processor.save_pretrained(tmp_path)
        loaded = AlignGPTProcessor.from_pretrained(tmp_path)
        assert ask(loaded, chat, alignment_level="best")["alignment_levels"].tolist() == [3]

    def test_a_processor_of_before_takes_numbers_and_says_what_it_lacks(self, processor, chat):
        processor.num_alignment_levels = None
        assert ask(processor, chat, alignment_level=11)["alignment_levels"].tolist() == [11]
        with pytest.raises(ValueError, match="does not know how many levels"):
            ask(processor, chat, alignment_level="best")

    def test_generation_follows_it(self, model, processor, chat):
        def answer(inputs, **options):
            return model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False, **options).tolist()

        plain = ask(processor, chat[:1], add_generation_prompt=True)
        answers = []
        for level in range(8):
            inputs = ask(processor, chat[:1], add_generation_prompt=True, alignment_level=level)
            answers.append(answer(inputs))
            assert answers[-1] == answer(plain, alignment_levels=torch.tensor([level]))
        assert len({str(each) for each in answers}) > 1
        gate = ask(processor, chat[:1], add_generation_prompt=True, alignment_level="auto")
        assert answer(gate) == answer(plain)

    def test_a_pipeline_passes_it_on(self, model, processor, chat):
        from transformers import pipeline

        pipe = pipeline("image-text-to-text", model=model, processor=processor)
        options = {"return_full_text": False, "generate_kwargs": {"max_new_tokens": 8, "min_new_tokens": 8}}
        for level in (0, 7):
            inputs = ask(processor, chat[:1], add_generation_prompt=True, alignment_level=level)
            ids = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
            found = pipe(text=chat[:1], alignment_level=level, **options)
            assert found[0]["generated_text"] == processor.decode(ids[0], skip_special_tokens=True)
