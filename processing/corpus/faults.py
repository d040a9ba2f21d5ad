"""What may be wrong with a record: the one list of kinds that scoring, levels, training and `--check` report by."""

# The kinds, and what each means; docs/faults.md shows this table
FAULT_KINDS = {
    # Pictures
    "missing": "The image is not there, or the text has a place for one and the record names none.",
    "unreadable": "The image is there, and cannot be read: permissions, a broken disk.",
    "outside_image_folder": "The path leads out of the image folder.",
    "zero_sized": "The file has no bytes, or the picture no pixels.",
    "truncated": "The file ends before the picture does.",
    "corrupt": "The file is no picture of a known format, or is damaged.",
    "decompression_bomb": "The picture has more pixels than Pillow's limit.",
    "extreme_shape": "The picture is so long and thin that resizing would make it enormous.",
    "several_images": "The record has several images, where a pair of one image and one text is needed.",
    "placeholder_count": "The text has places for another number of images than the record has.",
    # Texts
    "no_caption": "There is no text that describes the image: no caption, no assistant turn.",
    "empty_caption": "The caption, or what the assistant says, is empty.",
    "non_string_caption": "A text is no string: null, a number, a list.",
    # Records
    "malformed_record": "The record, a turn or its level is not of a known form; the message says what.",
    "unknown_part": "A message has a part of a type that is not known, such as a video or a tool call.",
    "missing_level": "Stage 1 needs a level of every row with an image, and the record has none.",
    "level_out_of_range": "The alignment level is not between 0 and N-1.",
    "broken_shard": "The rest of the file cannot be read; its rows are in no count.",
    "unexpected": "Something that nobody thought of; the message has the error.",
    # Rows of training
    "template": "The chat template or the processor refuses the conversation.",
    "too_long": "The row is longer than max_length, or ends in an image beyond it.",
    "no_target": "No token is trained on: no assistant turn, or it is cut off, or its weight is 0.",
}


class Fault(ValueError):
    """
    Why a record cannot be used.

    Args:
        kind (`str`): one of [`FAULT_KINDS`], by which reports count.
        message (`str`): what was found, what was expected.
        id (`str`, *optional*): the record's, if it has one.

    Raises:
        KeyError: if there is no such kind.
    """

    def __init__(self, kind: str, message: str, id: str | None = None):
        if kind not in FAULT_KINDS:
            raise KeyError(f"There is no kind of fault {kind!r}; the kinds are {', '.join(FAULT_KINDS)}.")
        super().__init__(message)
        self.kind, self.id = kind, id

    def __reduce__(self):  # exceptions with several arguments do not survive a worker process otherwise
        return type(self), (self.kind, str(self), self.id)
