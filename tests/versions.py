"""Tests of what came with a later version of transformers than the oldest that the package runs with."""

import pytest
import transformers
from packaging.version import Version


def since_transformers(version: str, feature: str) -> pytest.MarkDecorator:
    """Skips a test where `feature` is not there yet; what the package says then has a test of its own."""
    is_older = Version(transformers.__version__) < Version(version)
    return pytest.mark.skipif(is_older, reason=f"{feature} needs transformers {version}")


def before_transformers(version: str, feature: str) -> pytest.MarkDecorator:
    """Skips a test of what is said where `feature` is not there yet."""
    is_newer = Version(transformers.__version__) >= Version(version)
    return pytest.mark.skipif(is_newer, reason=f"{feature} came with transformers {version}")
