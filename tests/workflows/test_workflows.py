"""The GitHub workflows are well-formed, and what they call is there and does what they expect."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import aligngpt


ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps_of(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_triggers_limits_and_pinned_actions(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow[True] and workflow["permissions"]  # YAML reads `on` as true
    assert all("timeout-minutes" in job and "runs-on" in job for job in workflow["jobs"].values())
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]) for step in steps_of(path) if "uses" in step)
    for step in steps_of(path):
        if "run" in step:
            subprocess.run(["bash", "-n", "-c", step["run"]], check=True)


def test_ci_calls_what_runs_on_any_machine():
    (command,) = [step["run"] for step in steps_of(ROOT / ".github" / "workflows" / "ci.yml") if "run" in step]
    script = ROOT / command
    assert os.access(script, os.X_OK)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = set(re.findall(r"^make ([\w-]+)", script.read_text(), re.MULTILINE))
    assert called <= targets and {"test", "test-slow", "docs", "lint", "test-versions"} <= called


@pytest.mark.slow
def test_a_release_builds_a_wheel_and_an_archive_of_the_version(tmp_path):
    pytest.importorskip("build")
    options = ["--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    result = subprocess.run([sys.executable, "-m", "build", *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    version = aligngpt.__version__
    assert {path.name for path in tmp_path.iterdir()} == {
        f"aligngpt-{version}-py3-none-any.whl",
        f"aligngpt-{version}.tar.gz",
    }
    (wheel,) = tmp_path.glob("*.whl")
    assert "aligngpt/training/recipes/sft_7b.yaml" in zipfile.ZipFile(wheel).namelist()
