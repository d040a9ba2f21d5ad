"""The examples in docstrings run as they stand, beside the folder that `make demo` leaves."""

import inspect
import re
import shutil

import pytest

from aligngpt import AlignGPTForConditionalGeneration, AlignGPTProcessor


EXAMPLES = [AlignGPTForConditionalGeneration.forward, AlignGPTForConditionalGeneration.generate]
EXAMPLES += [AlignGPTProcessor.__call__, AlignGPTProcessor.apply_chat_template]


@pytest.mark.parametrize("function", EXAMPLES, ids=lambda function: function.__qualname__)
def test_the_example_of_a_docstring_runs(function, checkpoint, make_image, tmp_path, run_python):
    shutil.copytree(checkpoint, tmp_path / "demo_output" / "stage2")
    make_image(0).save(tmp_path / "demo_output" / "stage2" / "example.png")
    (example,) = re.findall(r"```python\n(.*?)```", inspect.getdoc(function), re.DOTALL)
    printed = run_python(example, tmp_path)
    assert printed and "grad_fn" not in printed
