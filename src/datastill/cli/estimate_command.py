"""`datastill estimate METHOD`."""

from __future__ import annotations

import json

from datastill.cli.config_file import config_of
from datastill.cli.distill_command import UNNAMED, describe_job, parse_options, refuse_options_of_methods
from datastill.cli.options import helped, plain_warnings, positional_first
from datastill.core.errors import InputError
from datastill.core.registry import get_method


def main(args: list[str]) -> int:
    """Parse as `distill` does, run a few steps, tell."""
    name, rest = positional_first(args)
    config = config_of(rest)
    if name is None and config.method is None:
        if helped(args, usage):
            return 0
        if not args:
            raise InputError("Name the data: `datastill estimate --data PATH` (and a method, `datastill estimate dm`).")
        name = UNNAMED
        refuse_options_of_methods([*rest, *(f"--{option}" for option in config.values)], "estimate")
    info = get_method(name or str(config.method))
    run, data, values = parse_options(info, rest, "estimate", config)
    from datastill.core.cost import describe_seconds, plural
    from datastill.core.runtime import Runtime
    from datastill.distillation.budget import estimate_job, paper_of, seconds_of, within
    from datastill.distillation.job import prepare_job

    with plain_warnings(run.quiet):
        real = data.load()
        settings = {
            "ipc": run.ipc,
            "network": run.network,
            "seed": run.seed,
            "runtime": Runtime.of(**run.engine),
            **values,
        }
        job = prepare_job(info.cls, real, recipe=run.recipe, **settings)
        paper = paper_of(job)
        budget = seconds_of(run.budget)
        if budget is not None:
            job = within(job, budget, None, False)
        told = estimate_job(job, paper)
    if run.json:
        print(json.dumps(told.to_dict(), indent=2))
        return 0
    print(describe_job(job))
    steps = f"{plural(told.steps, 'step')} of {told.seconds_per_step:.3g} s"
    print(f"This run:          {describe_seconds(told.seconds)} ({steps})")
    if told.prepare_seconds:
        print(f"  of which preparing: {describe_seconds(told.prepare_seconds)}")
    print(f"The full setting:  {describe_seconds(told.paper_seconds)} ({plural(told.paper_steps, 'step')})")
    print(f"Peak memory:       {told.peak_memory_bytes / 2**30:.1f} GiB")
    return 0


def usage() -> str:
    """What `datastill estimate --help` prints."""
    return (
        "usage: datastill estimate [METHOD] [options]\n\n"
        "Tell minutes and memory of a run before it starts; takes the options of `datastill distill [METHOD]`, also "
        "out of a file: --config run.toml."
    )
