"""A page to talk to a model in a browser: pictures, questions, levels, and what the gate chose as bars."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from threading import Lock
from typing import Any

import gradio as gr
import torch

from aligngpt.processing.image_conversion_aligngpt import ImageError, load_rgb_image
from aligngpt.processing.image_loading_aligngpt import read_image_file

from .answering import Assistant, PromptTooLongError
from .arguments import Sampling, read_level


AUTO = "auto: the gate chooses"
NOT_ANSWERED = "This could not be asked, and is no part of the conversation"
BEGIN_ANEW = "The bin above the conversation begins a new one."
MAX_WAITING = 64  # questions
STYLE = """
.aligngpt-bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 6px 10px; }
.aligngpt-bars { align-items: center; margin-bottom: 12px; }
.aligngpt-bars .track { background: var(--border-color-primary); border-radius: 4px; height: 14px; }
.aligngpt-bars .bar { background: var(--color-accent); border-radius: 4px; height: 100%; transition: width 0.4s; }
.aligngpt-bars .weight { font-variant-numeric: tabular-nums; }
.message img { min-width: 160px; object-fit: contain !important; }
.example-image-container:has(img) { width: 160px; height: 160px; }
.example-image-container img { width: 100%; height: 100%; object-fit: contain; }
.thought-group .content, .thought-group .content .md { color: var(--error-text-color) !important; opacity: 1; }
"""


def draw_bars(weights: Sequence[float], best: int) -> str:
    """The gate's weights of the levels below the best as bars of a page."""
    rows = "".join(
        f"<span>level {level}{' (worst)' if level == 0 else ''}</span>"
        f'<div class="track"><div class="bar" style="width: {100 * weight:.1f}%"></div></div>'
        f'<span class="weight">{weight:.3f}</span>'
        for level, weight in enumerate(weights)
    )
    note = f"The vector of level {best}, the best, is always there; the gate adds the others by these weights."
    return f'<div class="aligngpt-bars">{rows}</div><p>{note}</p>'


class Page:
    """
    Answers what the page sends. Conversations are the browser's; one question is answered at a time.

    Args:
        assistant ([`Assistant`]): who answers.
        system (`str`, *optional*): system message of every conversation.
        sampling ([`Sampling`], *optional*): what the page does not ask for itself: `top_p` and `seed`.
    """

    def __init__(self, assistant: Assistant, system: str | None = None, sampling: Sampling | None = None):
        self.assistant, self.system = assistant, system
        self.sampling = Sampling() if sampling is None else sampling
        self._one_at_a_time = Lock()

    def answer(
        self, message: dict[str, Any], history: list[dict[str, Any]], level: str, length: float, temperature: float
    ) -> Iterator[tuple[str | gr.ChatMessage, Any]]:
        """
        The answer so far and the bars, again and again, or why there is none; as gradio's `ChatInterface` calls it.
        """
        try:
            pictures = [self._open(file) for file in message.get("files") or []]
            if not (text := (message.get("text") or "").strip()):
                raise ValueError("Ask something about the picture.")
            chat = [*self._read(history), {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]
            inputs = self.assistant.prepare([chat], None if level == AUTO else read_level(level.partition(" ")[0]))
        except (ValueError, OSError) as error:
            yield _refuse(f"{error} {BEGIN_ANEW}" if isinstance(error, PromptTooLongError) else str(error))
            return
        sampling = replace(self.sampling, max_new_tokens=int(length), temperature=temperature)
        try:
            yield from self._answer(inputs, sampling)
        except torch.OutOfMemoryError:
            yield _refuse(f"The GPU's memory does not hold this conversation. {BEGIN_ANEW}")

    def _answer(self, inputs: Any, sampling: Sampling) -> Iterator[tuple[str, str]]:
        with self._one_at_a_time:
            bars, answer = self._bars(inputs), ""
            yield answer, bars
            with closing(self.assistant.stream(inputs, sampling)) as pieces:  # whoever stops it frees the model
                for piece in pieces:
                    answer += piece
                    yield answer, bars

    def _bars(self, inputs: Any) -> str:
        weights = self.assistant.weights(inputs)
        reason = self.assistant.why_no_gate(inputs, weights)
        if reason is None:
            return draw_bars(weights[0].tolist(), self.assistant.model.config.num_alignment_levels - 1)
        told = {
            "no picture": "No picture: there is nothing to choose for.",
            "level": f"Level {int(inputs['alignment_levels'][0])} was asked for: the gate did not run.",
            "mode": "This model has no gate that chooses.",
        }
        return f"<p>{told[reason]}</p>"

    def _open(self, file: str | dict[str, Any]) -> dict[str, Any]:
        path = file if isinstance(file, str) else file["path"]
        try:
            return {"type": "image", "image": load_rgb_image(read_image_file(path))[0]}
        except ImageError as error:
            raise ValueError(f"{os.path.basename(path)} cannot be used as a picture: {error}") from error

    def _read(self, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        gradio's messages as the processor's; those in a row of one role, as it has for each file, as one. A question
        that could not be asked goes, with the reason: its pictures may be none.
        """
        asked: list[dict[str, Any]] = []
        for message in history:
            if (message.get("metadata") or {}).get("title") != NOT_ANSWERED:
                asked.append(message)
                continue
            while asked and asked[-1]["role"] == "user":
                asked.pop()
        chat: list[dict[str, Any]] = []
        if self.system is not None:
            chat.append({"role": "system", "content": [{"type": "text", "text": self.system}]})
        for message in asked:
            parts = message["content"]
            read = [self._read_part(part) for part in ([parts] if isinstance(parts, str | dict | tuple) else parts)]
            if chat and chat[-1]["role"] == message["role"]:
                chat[-1]["content"] += read
            else:
                chat.append({"role": message["role"], "content": read})
        return chat

    def _read_part(self, part: Any) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if isinstance(part, tuple):
            return self._open(part[0])
        # The page has {"type": "file", "file": {"path": ...}}, clients of its interface {"path": ...}
        return {"type": "text", "text": part["text"]} if "text" in part else self._open(part.get("file", part))


def _refuse(reason: str) -> tuple[gr.ChatMessage, Any]:
    return gr.ChatMessage(reason, metadata={"title": NOT_ANSWERED}), gr.skip()


def is_on_zero_gpu() -> bool:
    """Whether this is a Space of Hugging Face's ZeroGPU, where a process has a GPU only while it answers."""
    return bool(os.environ.get("SPACES_ZERO_GPU"))


def on_gpu(answer: Callable[..., Any]) -> Callable[..., Any]:
    """The function, on ZeroGPU with a GPU for as long as it answers."""
    if not is_on_zero_gpu():
        return answer
    import spaces

    decorated: Callable[..., Any] = spaces.GPU(answer)
    return decorated


def build_page(
    assistant: Assistant,
    title: str,
    system: str | None = None,
    level: str = "auto",
    sampling: Sampling | None = None,
    examples: Sequence[tuple[str, str]] = (),
) -> gr.Blocks:
    """
    The page, to be shown by [`launch`], or put into another application by `gr.mount_gradio_app` with `css=STYLE`.

    Args:
        assistant ([`Assistant`]): who answers.
        title (`str`): above the page.
        system (`str`, *optional*): system message of every conversation.
        level (`str`): what the page begins with: a number, `"worst"`, `"best"` or `"auto"`.
        sampling ([`Sampling`], *optional*): what the page begins with.
        examples: pictures' paths with questions, to click on.

    Raises:
        ValueError: if the level is not one of the model's.
    """
    sampling = Sampling() if sampling is None else sampling
    best = assistant.model.config.num_alignment_levels - 1
    names = [f"{n}{' (worst)' if n == 0 else ' (best)' if n == best else ''}" for n in range(best + 1)]
    chosen = assistant.processor.read_alignment_level(read_level(level))
    with gr.Blocks(title=title, fill_width=True) as blocks, gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280, render=False) as side:
            shown = gr.Dropdown(
                [AUTO, *names],
                value=AUTO if chosen < 0 else names[chosen],
                label="Alignment level",
                info="How well the model is to take picture and words to fit each other.",
            )
            gr.Markdown("### What the gate chose")
            bars = gr.HTML("<p>Ask something about a picture.</p>", elem_id="gate")
            with gr.Accordion("How it answers", open=False):
                most = max(sampling.max_new_tokens, 512)
                length = gr.Slider(1, most, sampling.max_new_tokens, step=1, label="Tokens at most")
                info = "0 takes the likeliest token each time."
                temperature = gr.Slider(0, 2, sampling.temperature, step=0.1, label="Temperature", info=info)
        with gr.Column(scale=5, min_width=320):
            gr.ChatInterface(
                on_gpu(Page(assistant, system, sampling).answer),
                multimodal=True,
                title=title,
                chatbot=gr.Chatbot(height="calc(100vh - 200px)", min_height=300, show_label=False, buttons=["copy"]),
                textbox=gr.MultimodalTextbox(
                    file_types=["image"],
                    file_count="multiple",
                    placeholder="Add a picture, and ask about it",
                    autofocus=True,
                    stop_btn=True,
                ),
                additional_inputs=[shown, length, temperature],
                additional_outputs=[bars],
                examples=[[{"text": text, "files": [path]}] for path, text in examples] or None,
                cache_examples=False,
                # Who waits, waits in gradio's queue and sees the place in it, instead of holding a thread of the
                # page. On ZeroGPU every answer has a process and a GPU of its own
                concurrency_limit=None if is_on_zero_gpu() else 1,
                api_name="answer",
            )
        side.render()
    return blocks


def launch(page: gr.Blocks, **options: Any) -> None:
    """Shows the page until it is stopped; `options` are of gradio's `launch`."""
    options = {"css": STYLE, "theme": gr.themes.Soft(), "footer_links": [], "max_file_size": "20mb", **options}
    page.queue(max_size=MAX_WAITING).launch(**options)
