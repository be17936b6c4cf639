"""The benchmark: `python scripts/bench.py [--quick] [--rows cold,warm] [--publish]`.

Starts a platform of its own, measures at the client, and writes `build/bench/<time>.json` with
every raw sample. `--publish` also writes `docs/benchmarks/latest.json` and `docs/benchmarks.md`.
Exits 0 when every target is met, 1 when one is missed (a quick run only reports), 2 on wrong use.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.bench.report import markdown, write_json  # noqa: E402
from tests.bench.run import ROWS, run  # noqa: E402
from tests.bench.stage import SEED, Plan  # noqa: E402

from stoker.errors import StokerError  # noqa: E402

CHECKPOINT = ROOT / ".cache" / "models" / "smollm2-135m-instruct"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three samples a row, a smoke run")
    parser.add_argument("--rows", default=",".join(ROWS), help="which, of: %(default)s")
    parser.add_argument("--runs", type=int, help="samples of each cold and decode row (20)")
    parser.add_argument("--seed", type=int, default=SEED, help="of the order of turns")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--publish", action="store_true", help="also make docs/benchmarks.md")
    args = parser.parse_args()
    names = args.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"unknown rows {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if not args.checkpoint.is_dir():
        parser.error(f"{args.checkpoint} is not there; `make models` prepares it")
    plan = Plan.quick(args.seed) if args.quick else Plan(seed=args.seed)
    if args.runs:
        plan = replace(plan, cold_runs=args.runs, decode_runs=args.runs)

    scratch = ROOT / ".cache" / "bench"  # on the disk that is measured, not in a tmpfs
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="home-") as home:
        try:
            report = run(ROOT, Path(home), args.checkpoint, plan, names, _tell)
        except StokerError as error:
            _tell(f"error: {error.message}")
            return 1
    path = ROOT / "build" / "bench" / f"{report.started_at.replace(':', '')}.json"
    write_json(report, path)
    _tell(f"wrote {path.relative_to(ROOT)}")
    if args.publish:
        write_json(report, ROOT / "docs" / "benchmarks" / "latest.json")
        (ROOT / "docs" / "benchmarks.md").write_text(markdown(report))
        _tell("wrote docs/benchmarks/latest.json and docs/benchmarks.md")
    return 0 if report.passed or args.quick else 1


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
