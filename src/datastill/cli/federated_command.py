"""`datastill federated STRATEGY`: training on data that stay with several clients."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datastill.cli.options import (
    DataOptions,
    DeviceOptions,
    helped,
    method_options,
    parse,
    plain_warnings,
    positional_first,
    usage_of,
)
from datastill.core.errors import InputError
from datastill.core.ranges import Amount, Count, Few, Processes, SecondsOrNone, Seed, Share

STRATEGIES = {
    "feddm": "Clients send a few synthetic images, with or without differential privacy.",
    "fedmk": "Clients send a few synthetic images, condensed at the network of the round, and pass them around.",
    "fedavg": "Clients send the weights that they trained.",
    "fedprox": "The same, with a price for leaving the weights that they were given.",
}
ABOUT = "Train one network on data that stay with several clients, and count what travels and what it tells."


@dataclass(frozen=True, kw_only=True)
class FederatedOptions(DeviceOptions):
    """Who holds what, and for how long."""

    clients: Few = 10  #: how many
    partition: str = "dirichlet:0.5"  #: who holds what: iid, dirichlet:ALPHA, or classes:K
    rounds: Count = 5  #: of clients and server
    min_size: Amount = 1  #: images that every client must have
    active: Share = 1.0  #: share of the clients that take part in a round
    deadline: SecondsOrNone = 0.0  #: seconds after which a client's answer is late, and left out of its round; 0 waits
    network: str | None = None  #: network to train, such as convnet:width=32; sized to fit if none
    seed: Seed = 0  #: of every random draw
    out: Path = Path("runs/federated")  #: folder of the run; the same command goes on in it
    #: processes to run clients in, one thread each; ray or ray:4 for those of a Ray cluster
    workers: Processes = 1
    quiet: bool = False  #: print the table only
    json: bool = False  #: print the result as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    name, rest = positional_first(args)
    if name is None:
        if helped(args, usage):
            return 0
        raise InputError("Name a strategy: `datastill federated feddm --data PATH`, or fedmk, fedavg or fedprox.")
    from datastill.apps.federated.strategies import get_strategy

    kind = get_strategy(name)
    options = dataclasses.make_dataclass(
        "Options",
        [("run", FederatedOptions), ("data", DataOptions), ("strategy", method_options(kind))],
        frozen=True,
    )
    parsed: Any = parse(options, rest, f"federated {name}", STRATEGIES[name])
    with plain_warnings(parsed.run.quiet):
        return run(kind(**parsed.strategy), parsed.run, parsed.data)


def usage() -> str:
    """What `datastill federated --help` prints."""
    return usage_of("federated", ABOUT, STRATEGIES)


def run(strategy: Any, options: FederatedOptions, data: DataOptions) -> int:
    """All rounds, the table, the page."""
    from datastill.apps.federated.runner import federated
    from datastill.cli.progress import Display
    from datastill.cli.tables import part_laid_out

    display = Display(options.quiet or options.json)
    display.say(f"Reading {data.data} ...")
    real = data.load()
    display.say(f"Every finished round is kept in {options.out}: the same command goes on there.")
    with display.bars():
        made = federated(
            strategy,
            real,
            clients=options.clients,
            partition=options.partition,
            rounds=options.rounds,
            min_size=options.min_size,
            active=options.active,
            deadline=options.deadline,
            network=options.network,
            seed=options.seed,
            out=options.out,
            workers=options.workers,
            device=options.device,
            progress=display.update,
        )
    if options.json:
        print(json.dumps(made.to_dict(), indent=2))
    else:
        display.out.print(part_laid_out(made.rows()))
    for note in made.notes:
        display.say(note)
    display.say(f"Written to {options.out}: federated.json and report.html.")
    return 0
