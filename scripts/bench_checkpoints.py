"""The checkpoints' benchmark: `python scripts/bench_checkpoints.py [--quick] [--rows upload]`.

Measures cold starts from a bucket, from disk and from memory, uploads, and eviction, with MinIO
servers and platforms of its own, and writes `build/bench-checkpoints/<time>.json` with every raw
sample. `--publish` also writes `docs/checkpoint-benchmarks/latest.json` and
`docs/checkpoint-benchmarks.md`. Exits 0 when every target is met, 1 when one is missed (a quick run
only reports), 2 on wrong use.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.bench.checkpoints.models import SIZES  # noqa: E402
from tests.bench.checkpoints.plan import SEED, Plan  # noqa: E402
from tests.bench.checkpoints.results import EVICTION  # noqa: E402
from tests.bench.checkpoints.run import FAILED, ROWS, Bench, run  # noqa: E402
from tests.bench.loader.store import SMOLLM2  # noqa: E402
from tests.bench.report import CHECKPOINTS, markdown, write_json  # noqa: E402
from tests.support.minio import executable  # noqa: E402

CACHE = ROOT / ".cache"
DATA = CACHE / "bench-checkpoints"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="once, on the small model, a smoke run"
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="which, of: %(default)s")
    parser.add_argument("--runs", type=int, help="of everything")
    parser.add_argument("--sizes", help=f"which, of: {','.join(SIZES)}")
    parser.add_argument("--seed", type=int, default=SEED, help="of the order of turns")
    parser.add_argument("--publish", action="store_true", help="also make the page in docs")
    args = parser.parse_args()
    rows = args.rows.split(",")
    if unknown := [name for name in rows if name not in ROWS]:
        parser.error(f"unknown rows {', '.join(unknown)}; there are {', '.join(ROWS)}")
    plan = Plan.quick(args.seed) if args.quick else Plan(seed=args.seed)
    if args.runs is not None:
        if args.runs < 1:
            parser.error("--runs: at least one")
        plan = replace(plan, runs=args.runs)
    if args.sizes:
        sizes = tuple(args.sizes.split(","))
        if unknown := [name for name in sizes if name not in SIZES]:
            parser.error(f"unknown sizes {', '.join(unknown)}; there are {', '.join(SIZES)}")
        plan = replace(plan, sizes=sizes)
    models = Path(os.environ.get("STOKER_MODELS", CACHE / "models"))
    if set(rows) != {EVICTION}:
        if executable() is None:
            parser.error("minio is not on PATH, and `make minio` has built none")
        if not (models / SMOLLM2 / "config.json").exists():
            parser.error(f"{models / SMOLLM2} is not there; `make models` prepares it")
    DATA.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DATA, prefix="run-") as scratch:
        bench = Bench(plan, models.resolve(), DATA, Path(scratch), _tell)
        report = run(bench, ROOT, rows)
    path = ROOT / "build" / "bench-checkpoints" / f"{report.started_at.replace(':', '')}.json"
    write_json(report, path)
    _tell(f"wrote {path.relative_to(ROOT)}")
    if failed := [note for note in report.notes if note.startswith(FAILED)]:
        _tell("\n".join([*failed, "what is not whole is not published"]))
        return 1
    if args.publish:
        docs = ROOT / "docs"
        write_json(report, docs / "checkpoint-benchmarks" / "latest.json")
        (docs / "checkpoint-benchmarks.md").write_text(markdown(report, CHECKPOINTS))
        _tell("wrote docs/checkpoint-benchmarks/latest.json and docs/checkpoint-benchmarks.md")
    return 0 if report.passed or args.quick else 1


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
