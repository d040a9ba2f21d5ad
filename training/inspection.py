"""What a row of training data becomes, as text in colours."""

from itertools import groupby

from rich.text import Text

from aligngpt.processing import AlignGPTProcessor


STYLES = {"trained": "bold green", "read by the gate": "cyan", "placeholder": "bold magenta", "other": "dim"}


def render_row(processor: AlignGPTProcessor, batch: dict, level: int) -> Text:
    """One collated row as text: a line of numbers, then its tokens by what becomes of them, trained ones in [[ ]]."""
    ids, labels, types = (batch[name][0].tolist() for name in ("input_ids", "labels", "token_type_ids"))
    placeholders = (processor.image_token_id, processor.align_token_id)
    kinds = [
        "trained"
        if label != -100
        else "placeholder"
        if token in placeholders
        else "read by the gate"
        if kind
        else "other"
        for token, label, kind in zip(ids, labels, types, strict=True)
    ]
    num_images = ids.count(processor.image_token_id)
    text = Text(
        f"row {batch['row_ids'][0]}: {len(ids)} tokens, {num_images} of images, {kinds.count('trained')} trained, "
        f"{kinds.count('read by the gate')} read by the gate, level {level if level >= 0 else 'not given'}"
        + (", cut at max_length" if batch["truncated_rows"] else "")
        + "\n"
    )
    end = 0
    for (kind, token), run in groupby(zip(kinds, (id if id in placeholders else None for id in ids), strict=True)):
        start, end = end, end + len(list(run))
        if token is None:  # as a difference: a piece decoded alone would lose the space before it
            shown = processor.decode(ids[:end])[len(processor.decode(ids[:start])) :]
        else:
            shown = processor.tokenizer.convert_ids_to_tokens(token) + (f"x{end - start}" if end - start > 1 else "")
        text.append(f"[[{shown}]]" if kind == "trained" else shown, STYLES[kind])
    return text
