"""The loader's benchmark: `python scripts/bench_loader.py [--quick] [--rows cold] [--publish]`.

Measures our loader beside the peers that `make bench-loader` installs, and writes
`build/bench-loader/<time>.json` with every raw sample. `--publish` also writes
`docs/loader-benchmarks/latest.json` and `docs/loader-benchmarks.md`. Exits 0 when every target is
met, 1 when one is missed (a quick run only reports), 2 on wrong use.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.bench.loader.contenders import Peers  # noqa: E402
from tests.bench.loader.plan import SEED, Plan  # noqa: E402
from tests.bench.loader.run import FAILED, ROWS, run  # noqa: E402
from tests.bench.loader.store import CHECKPOINTS, Store  # noqa: E402
from tests.bench.report import LOADER, markdown, write_json  # noqa: E402

CACHE = ROOT / ".cache"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one small round, a smoke run")
    parser.add_argument("--rows", default=",".join(ROWS), help="which, of: %(default)s")
    parser.add_argument("--rounds", type=int, help="of every row")
    parser.add_argument("--minutes", type=float, help="that all measurements may take")
    parser.add_argument("--sizes", help=f"which, of: {','.join(CHECKPOINTS)}")
    parser.add_argument("--seed", type=int, default=SEED, help="of the order of turns")
    parser.add_argument("--peers", type=Path, default=CACHE / "bench-peers")
    parser.add_argument("--data", type=Path, default=CACHE / "bench-loader")
    parser.add_argument("--publish", action="store_true", help="also make the page in docs")
    args = parser.parse_args()
    rows = args.rows.split(",")
    if unknown := [name for name in rows if name not in ROWS]:
        parser.error(f"unknown rows {', '.join(unknown)}; there are {', '.join(ROWS)}")
    plan = Plan.quick(args.seed) if args.quick else Plan(seed=args.seed)
    if args.rounds:
        plan = replace(plan, rounds=args.rounds)
    if args.minutes:
        plan = replace(plan, time_limit_s=args.minutes * 60)
    if args.sizes:
        sizes = tuple(args.sizes.split(","))
        if unknown := [name for name in sizes if name not in CHECKPOINTS]:
            parser.error(f"unknown sizes {', '.join(unknown)}")
        warm = tuple(name for name in plan.warm_sizes if name in sizes)
        plan = replace(plan, sizes=sizes, warm_sizes=warm or sizes)
    try:
        peers = Peers.at(args.peers)
    except FileNotFoundError:
        parser.error(f"{args.peers} holds no peers; `make bench-loader` installs them")
    models = Path(os.environ.get("STOKER_MODELS", CACHE / "models"))
    report = run(ROOT, Store(args.data, models, peers, _tell), plan, rows, _tell)
    path = ROOT / "build" / "bench-loader" / f"{report.started_at.replace(':', '')}.json"
    write_json(report, path)
    _tell(f"wrote {path.relative_to(ROOT)}")
    if failed := [note for note in report.notes if note.startswith(FAILED)]:
        _tell("\n".join([*failed, "what is not whole is not published"]))
        return 1
    if args.publish:
        docs = ROOT / "docs"
        write_json(report, docs / "loader-benchmarks" / "latest.json")
        (docs / "loader-benchmarks.md").write_text(markdown(report, LOADER))
        _tell("wrote docs/loader-benchmarks/latest.json and docs/loader-benchmarks.md")
    return 0 if report.passed or args.quick else 1


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
