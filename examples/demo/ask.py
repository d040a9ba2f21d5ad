"""
Asks the demo's model about a picture; prints the answer and how the gate mixed the levels.

    python examples/demo/ask.py                                          # its own example picture
    python examples/demo/ask.py "what colour is top-left?" --image PICTURE --level best
"""

import argparse
from pathlib import Path

import torch
import transformers
from rich.console import Console
from transformers import AutoModelForImageTextToText, AutoProcessor

import aligngpt  # noqa: F401  registers with the Auto classes


def main() -> None:
    """Loads, asks, prints."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    parser.add_argument("question", nargs="?", default="describe the picture.")
    parser.add_argument("--model", default=Path(__file__).parents[2] / "demo_output" / "stage2", type=Path)
    parser.add_argument("--image", type=Path, help="the model's example.png")
    parser.add_argument("--level", default="auto", help="0 to 7, worst, best, or auto: the gate decides")
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    model, processor = (part.from_pretrained(args.model) for part in (AutoModelForImageTextToText, AutoProcessor))
    picture = {"type": "image", "path": str(args.image or args.model / "example.png")}
    chat = [
        {"role": "system", "content": "look and answer."},  # what the model was trained with
        {"role": "user", "content": [picture, {"type": "text", "text": args.question}]},
    ]
    level = int(args.level) if args.level.lstrip("-").isdigit() else args.level
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    try:
        inputs = processor.apply_chat_template(chat, alignment_level=level, **options)
    except ValueError as error:  # a picture that is not there, a level that the model does not have
        parser.error(str(error))
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=60, do_sample=False)
        weights = model.get_alignment_weights(**inputs)[0].tolist()
    console = Console(highlight=False)
    console.print(
        processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip(), soft_wrap=True
    )
    if args.level == "auto":
        console.print("\nThe gate's mix of the levels below the best, whose vector is always there:")
        for level, weight in enumerate(weights):
            console.print(f"  level {level}  {weight:.2f}  " + "\u2588" * round(40 * weight))


if __name__ == "__main__":
    main()
