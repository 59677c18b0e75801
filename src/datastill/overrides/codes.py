"""What is stored of an image: a few of its frequencies instead of its pixels, see `decoders.dct`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from datastill.core.errors import InputError, nearest
from datastill.core.overrides import Override
from datastill.core.ranges import Amount, check_fields

if TYPE_CHECKING:
    from datastill.core.plan import Init, Plan, Task

#: Of the frequencies, kept where no number is given; real images of which their variances are taken.
_PART, _LOOKED_AT = 16, 2000


@dataclass(frozen=True)
class Frequencies(Override):
    """A few coefficients of the discrete cosine transform, and several images in the room of one ("dct:kept=64").

    The frequencies are those in which real images vary most, the same for all images and channels (FreD: Shin et al.,
    NeurIPS 2023, arXiv:2311.08819).
    """

    option = "codes"
    label = "codes"
    default = "method"
    help = (
        "or dct: store the frequencies of images that vary most, and several images for one (dct:kept=64,instances=16)"
    )

    kept: Amount = 0  #: frequencies of each channel; 0 keeps a sixteenth of them
    instances: Amount = 0  #: images that a stored one holds; 0 takes as many as take the numbers of one

    def __post_init__(self) -> None:
        check_fields(self, "{name} of codes")

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """ "dct", with options."""
        from datastill.data.sources import split_options, typed_option

        if text == "method":
            return None
        how, given = split_options(text)
        if how != "dct":
            raise InputError(f"There are no codes {how!r}. {nearest(how, ('method', 'dct'))}")
        unknown = [name for name in given if name not in ("kept", "instances")]
        if unknown:
            raise InputError(f"Codes have no option {unknown[0]!r}. {nearest(unknown[0], ('kept', 'instances'))}")
        return cls(**{name: typed_option(value, 0, f"dct:{name}") for name, value in given.items()})

    def apply(self, plan: Plan, method: str, task: Task) -> Plan:
        """The plan with frequencies as its codes, started from more real images."""
        import torch

        from datastill.decoders.dct import Dct, varying_most

        _, height, width = task.real.shape
        kept = self.kept or max(1, height * width // _PART)
        if kept > height * width:
            raise InputError(
                f"Images of {height} x {width} have {height * width} frequencies; --codes asks for {kept}."
            )
        instances = self.instances or height * width // kept
        several = _of_several(plan, method, instances)
        looked_at = torch.arange(0, len(task.real), max(1, len(task.real) // _LOOKED_AT))
        decoder = Dct(height, width, varying_most(task.real.batch(looked_at).x, kept), instances)
        update = {("coefficients" if name == "images" else name): rule for name, rule in plan.update.items()}
        return replace(plan, decoder=decoder, init=several, update=update)

    def describe(self) -> dict[str, Any]:
        """The kind and its options."""
        return {"how": "dct", "kept": self.kept, "instances": self.instances}

    @classmethod
    def schema(cls) -> Any:
        """The kind and its options."""
        from datastill.decoders.dct import CodesRecord

        return CodesRecord

    @classmethod
    def told(cls, record: Mapping[str, Any]) -> tuple[str, str]:
        """Images stored as so and so."""
        return "Images stored as", cls.text(record)

    @classmethod
    def text(cls, record: Mapping[str, Any]) -> str:
        """ "dct:kept=64,instances=16"."""
        return f"dct:kept={record['kept']},instances={record['instances']}"

    @classmethod
    def phrase(cls, record: Mapping[str, Any]) -> tuple[str, str]:
        """For the card."""
        return ", stored as frequencies", cls.text(record)


def _of_several(plan: Plan, method: str, instances: int) -> Init:
    """The start with `instances` real images for every stored one.

    Raises:
        InputError: what the plan stores, or where it starts, leaves no room for frequencies.
    """
    from datastill.decoders.multi_formation import MultiFormation
    from datastill.decoders.pixels import Pixels
    from datastill.sampling.inits import MixReal, RandomReal, SeveralReal

    whole = isinstance(plan.decoder, Pixels) or (isinstance(plan.decoder, MultiFormation) and plan.decoder.factor == 1)
    if not whole:
        raise InputError(f"{method} stores more than one image in a stored one already; with --codes, give --factor 1.")
    if plan.init not in (RandomReal(), MixReal(1)):
        raise InputError(f"Frequency codes begin as random real images; with --codes, leave {method} its --init real.")
    return SeveralReal(instances)


OVERRIDE = Frequencies
