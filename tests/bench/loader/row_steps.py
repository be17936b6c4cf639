"""Rows of our loader against itself: verification on and off, each step on and off."""

from __future__ import annotations

from tests.bench.loader.compare import COLD, PROTOCOL, samples_of
from tests.bench.loader.ours import ABLATION, VERIFY_OFF, VERIFY_ON
from tests.bench.loader.results import GB, ByName, Results, cpu_s, rate, touched_s
from tests.bench.report import Row
from tests.bench.stats import median

MAX_VERIFY_RATIO = 1.05


def verification_row(results: Results) -> Row:
    ((checkpoint, by_name),) = results.verification.items()
    ratio = median(touched_s(by_name[VERIFY_ON])) / median(touched_s(by_name[VERIFY_OFF]))
    return Row(
        id="verification",
        question=f"cold load of {checkpoint} with every chunk verified, against without",
        target=f"<= {MAX_VERIFY_RATIO - 1:.0%} slower",
        figure=f"{ratio - 1:+.1%}",
        passed=ratio <= MAX_VERIFY_RATIO,
        method=PROTOCOL + COLD + "`verify_on` is `load_file(path, verify=digest)`: the thread that "
        "brought a chunk in hashes it while it is warm. `verify_first` and `verify_afterwards` are "
        "`stoker_loader.verify` as a step of its own, before the load or behind it.",
        samples={
            **samples_of(results.verification, touched_s),
            **samples_of(results.verification, cpu_s, "cpu_s"),
        },
        table=_table(by_name),
    )


def warm_verification_row(results: Results) -> Row:
    ((checkpoint, by_name),) = results.verification_warm.items()
    off, on = (median(touched_s(by_name[name])) for name in (VERIFY_OFF, VERIFY_ON))
    per_gb_ms = (on - off) * 1e3 / (results.checkpoint_bytes[checkpoint] / GB)
    return Row(
        id="verification-warm",
        question=f"load of {checkpoint} from the page cache with every chunk verified",
        target="",
        figure=f"{on * 1e3:.0f} ms instead of {off * 1e3:.0f}: {per_gb_ms:.0f} ms per GB",
        passed=None,
        method=PROTOCOL + "All pages are resident: without verification nobody reads them before "
        "the touch, with it every byte is hashed once. A file that was verified on its way in need "
        "not be again.",
        samples={
            **samples_of(results.verification_warm, touched_s),
            **samples_of(results.verification_warm, cpu_s, "cpu_s"),
        },
        table=_table(by_name),
    )


def _table(by_name: ByName) -> list[list[str]]:
    off = median(touched_s(by_name[VERIFY_OFF]))
    return [
        ["variant", "until every page is touched", "CPU", "against off"],
        *(
            [
                name,
                f"{median(touched_s(outcomes)):.3f} s",
                f"{median(cpu_s(outcomes)):.3f} s",
                f"{median(touched_s(outcomes)) / off - 1:+.1%}",
            ]
            for name, outcomes in by_name.items()
        ),
    ]


def ablation_row(results: Results) -> Row:
    ((checkpoint, by_name),) = results.steps.items()
    whole = median(touched_s(by_name["all_steps"]))
    slowdown = {
        name: median(touched_s(outcomes)) / whole
        for name, outcomes in by_name.items()
        if name != "all_steps"
    }
    return Row(
        id="ablation",
        question=f"cold load of {checkpoint} with one step switched off",
        target="",
        figure="; ".join(f"{name} {factor:.2f}x as long" for name, factor in slowdown.items()),
        passed=None,
        method=PROTOCOL + COLD + "Reading from a disk into the page cache is one stage, so there "
        "is no pipeline to switch off but those of `verification` and, from the network, "
        "`pipeline`. The page cache takes the place "
        "of direct reads: rows without it read into memory that only one process has.",
        samples={
            **samples_of(results.steps, touched_s),
            **samples_of(results.steps, cpu_s, "cpu_s"),
        },
        table=[
            ["switched off", "rate", "CPU", "takes as long as all steps times"],
            *(
                [
                    ABLATION[name][0],
                    f"{rate(results.checkpoint_bytes[checkpoint], touched_s(outcomes)):.2f} GB/s",
                    f"{median(cpu_s(outcomes)):.3f} s",
                    f"{median(touched_s(outcomes)) / whole:.2f}",
                ]
                for name, outcomes in by_name.items()
            ),
        ],
    )
