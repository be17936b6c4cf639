"""What the rows of cold starts have in common: their samples and the cells of their tables."""

from __future__ import annotations

from tests.bench.checkpoints.results import PHASES, Start, Starts
from tests.bench.stats import median

GB = 1e9

CLOCK = (
    "The clock runs in the client, on the node, from before the request is sent to the first text "
    "of the streamed answer of one token. Before every start the function is scaled to zero and "
    "the warm pool refilled (`/readyz?warm=1`), and the client touches as much memory as the "
    "checkpoint has and gives it back just before its clock starts: on a virtual machine memory "
    "that lies free for seconds may go back to the host, and costs more than a disk to get again. "
    "Every answer must be the same, and the platform's timeline must say that the bytes came from "
    "the tier that is meant. SmolLM2 is the published model with its chat template; llama_1b has "
    "random weights, about TinyLlama's shape, and a template that is the message alone, so that "
    "its prompt is one word. The starts of all kinds and the raw GETs take turns in random order. "
    "Figures are medians."
)


def start_samples(prefix: str, starts: list[Start]) -> dict[str, list[float]]:
    """The client's clock and every phase of the timeline."""
    return {
        f"{prefix}_first_token_s": [start.first_token_s for start in starts],
        **{
            f"{prefix}_{phase}_ms": [start.phases_ms[phase] for start in starts] for phase in PHASES
        },
    }


def phase_cells(starts: list[Start]) -> list[str]:
    """The medians of all phases, for a table whose head ends with their names."""
    return [f"{median([start.phases_ms[phase] for start in starts]):.0f} ms" for phase in PHASES]


def size(starts: Starts) -> str:
    return f"{starts.checkpoint_bytes / GB:.2f} GB"


def facts(found: list[tuple[str, str, Starts]]) -> dict[str, float | int | str | bool | None]:
    """Of each checkpoint, once."""
    return {
        **{f"{name}_bytes": starts.checkpoint_bytes for name, _, starts in found},
        **{f"{name}_prompt_tokens": starts.prompt_tokens for name, _, starts in found},
    }
