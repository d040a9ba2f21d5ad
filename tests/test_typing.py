"""What the package exports has types that a user's strict mypy agrees with."""

import subprocess
import sys
from pathlib import Path

import pytest


USER_CODE = Path(__file__).parent / "typing" / "user_code.py"


def run_mypy(file, tmp_path):
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(file)]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.slow
def test_a_user_s_file_with_every_name_is_clean_in_strict_mode(tmp_path):
    pytest.importorskip("mypy")
    import aligngpt

    text = USER_CODE.read_text()
    assert all(name in text for name in aligngpt.__all__)
    result = run_mypy(USER_CODE, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_the_types_say_more_than_any(tmp_path):
    pytest.importorskip("mypy")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from aligngpt import AlignGPTProcessor, cut_into_levels\n"
        'processor = AlignGPTProcessor.from_pretrained("x")\n'
        'number: int = processor(text="a")\n'
        "cut_into_levels([0.1], num_level=2)\n"
    )
    found = run_mypy(wrong, tmp_path).stdout
    assert "wrong.py:3: error: Incompatible types" in found and "wrong.py:4: error:" in found, found
