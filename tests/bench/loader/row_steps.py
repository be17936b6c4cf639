"""Rows of our loader against itself: verification on and off, each step on and off."""

from __future__ import annotations

from tests.bench.loader.compare import COLD, PROTOCOL, samples_of
from tests.bench.loader.ours import ABLATION, VERIFICATION
from tests.bench.loader.results import Results, cpu_s, rate, touched_s
from tests.bench.report import Row
from tests.bench.stats import median

MAX_VERIFY_RATIO = 1.05


def verification_row(results: Results) -> Row:
    ((checkpoint, by_name),) = results.verification.items()
    off = median(touched_s(by_name["all_steps"]))
    ratios = {name: median(touched_s(by_name[name])) / off for name in VERIFICATION}
    best = min(ratios, key=lambda name: ratios[name])
    return Row(
        id="verification",
        question=f"cold load of {checkpoint} with every chunk verified, against without",
        target=f"<= {MAX_VERIFY_RATIO - 1:.0%} slower",
        figure=f"{ratios[best] - 1:+.1%} ({best})",
        passed=ratios[best] <= MAX_VERIFY_RATIO,
        method=PROTOCOL + COLD + "`verify_in_pipeline` reads and hashes chunk by chunk "
        "(`stoker_loader.verify`) and then maps what is resident; `verify_afterwards` reads all "
        "before it hashes all, which is what the pipeline saves.",
        samples={
            **samples_of(results.verification, touched_s),
            **samples_of(results.verification, cpu_s, "cpu_s"),
        },
        table=[
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
        ],
    )


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
        "is no pipeline to switch off but that of `verification`. The page cache takes the place "
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
