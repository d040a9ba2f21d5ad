"""The demo's CLIP, LLaMA and answers serve the miniature, too: importing this makes its modules importable."""

import sys
from pathlib import Path


sys.path.append(str(Path(__file__).parents[1] / "demo"))
