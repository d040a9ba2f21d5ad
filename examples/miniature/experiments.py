"""
The matrix of the miniature: what is trained and how, listed before it runs.

A run is one method with one seed. Methods that differ in stage 2 alone share their stage 1. The search for a gate that
adapts reads the validation split only; every other run is judged on the test split.
"""

from dataclasses import dataclass, field
from typing import Any


MAIN_SEEDS = (0, 1, 2, 3, 4)
SEEDS = (0, 1, 2)
LEVELS = 8


@dataclass(frozen=True)
class Size:
    """How much of everything. The recipes say the rest."""

    num_train: int = 8000
    num_test: int = 300
    num_web: int = 16_000
    clip_epochs: int = 16
    clip_batch_size: int = 256
    num_texts: int = 20_000
    llama_steps: tuple[int, int] = (400, 1800)
    num_captioned: int = 300
    num_gate_rows: int = 256
    num_fixed_level: int = 60
    stage1: dict[str, Any] = field(default_factory=lambda: {"num_train_epochs": 3, "learning_rate": 1e-2})
    stage2: dict[str, Any] = field(
        default_factory=lambda: {"num_train_epochs": 0.4, "per_device_train_batch_size": 32}
    )


SIZES = {
    "full": Size(),
    # For the tests: enough to see the method work, in some minutes
    "reduced": Size(
        num_train=6000,
        num_test=150,
        num_web=12_000,
        clip_epochs=12,
        num_texts=10_000,
        llama_steps=(300, 800),
        num_captioned=150,
        num_gate_rows=64,
        num_fixed_level=4,
    ),
    "smoke": Size(
        num_train=64,
        num_test=12,
        num_web=128,
        clip_epochs=1,
        clip_batch_size=32,
        num_texts=2000,
        llama_steps=(4, 4),
        num_captioned=8,
        num_gate_rows=16,
        num_fixed_level=4,
        stage1={"max_steps": 2, "per_device_train_batch_size": 8},
        stage2={"max_steps": 2, "per_device_train_batch_size": 8},
    ),
}


@dataclass(frozen=True)
class Stage1:
    """A start of stage 2. `levels`: those of the scorer, those drawn at random, or one and the same for all pairs."""

    name: str
    num_levels: int = LEVELS
    levels: str = "scored"
    has_align_token: bool = True


@dataclass(frozen=True)
class Method:
    """A model: its stage 1, and the arguments of `aligngpt.training.sft` that stage 2 adds to the recipe's."""

    name: str
    title: str
    stage1: str = "aligngpt"
    arguments: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS
    split: str = "test"


STAGES_1 = {
    stage.name: stage
    for stage in (
        Stage1("llava", has_align_token=False),
        Stage1("token", num_levels=2, levels="constant"),
        Stage1("aligngpt"),
        Stage1("n2", num_levels=2),
        Stage1("n4", num_levels=4),
        Stage1("n10", num_levels=10),
        Stage1("random_levels", levels="random"),
    )
}

MAIN = (
    Method("llava", "LLaVA", stage1="llava", seeds=MAIN_SEEDS),
    # An extra token that is trained in both stages, so that room in the prompt cannot pass for alignment
    Method(
        "token",
        "LLaVA and one learnt token",
        stage1="token",
        arguments={"alignment_mode": "global", "train_alignment_embeddings": True},
        seeds=MAIN_SEEDS,
    ),
    Method("aligngpt", "AlignGPT, gate of equation 2", seeds=MAIN_SEEDS),
)

ABLATIONS = (
    Method("n2", "N = 2", stage1="n2"),
    Method("n4", "N = 4", stage1="n4"),
    Method("n10", "N = 10", stage1="n10"),
    Method("local", "local embeddings only", arguments={"alignment_mode": "local"}),
    Method("global", "global embedding only", arguments={"alignment_mode": "global"}),
    Method("average", "average of the local ones, and global", arguments={"alignment_mode": "average"}),
    Method("random_levels", "random levels in stage 1", stage1="random_levels"),
    Method("random_table", "random table in stage 2", arguments={"random_alignment_embeddings": True}),
    Method("text_all", "the gate reads the answers too (the authors' code)", arguments={"alignment_gate_text": "all"}),
)

RATE = 3e-3  # of stage 2 in its recipe; a gate's own rate is a multiple of it


def gate(name: str, title: str, rate: float = 1, **fields: Any) -> Method:
    """A variant of the gate for the search: its learning rate, and fields `alignment_gate_*` of the configuration."""
    arguments = {"gate_learning_rate": rate * RATE} | {f"alignment_gate_{n}": value for n, value in fields.items()}
    return Method(f"gate_{name}", title, arguments=arguments, split="validation")


# Listed before it ran, after six single runs on the validation split: at 10 times the recipe's rate all weight ended
# on one embedding (with the text alone at the recipe's own), and dot products told pictures apart, not questions
SEARCH = (
    gate("authors", "the authors' formula"),
    gate("fast", "10 x the learning rate", rate=10),
    gate("slow", "0.1 x the learning rate", rate=0.1),
    gate("layer_norm", "layer norm, 10 x the learning rate", rate=10, input="layer_norm"),
    gate("cosine", "cosine, attention over the text, 0.1 x the rate", rate=0.1, input="cosine", query="attention"),
    gate("text", "text alone", input="text"),
    gate("text_slow", "text alone, 0.1 x the rate", rate=0.1, input="text"),
    gate("text_soft", "text alone, temperature 10", input="text", temperature=10.0),
)

# Of the variants whose weights differ more between tasks than within one, that whose weights differ most; all variants
# answer alike. On the test split
CHOSEN = (
    Method(
        "chosen",
        "AlignGPT, gate that reads the text alone at 0.1 x the rate",
        arguments=next(method.arguments for method in SEARCH if method.name == "gate_text_slow"),
        seeds=MAIN_SEEDS,
    ),
)

METHODS = (*MAIN, *ABLATIONS, *SEARCH, *CHOSEN)
