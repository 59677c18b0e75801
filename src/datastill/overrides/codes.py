"""What is stored of an image, in the place of a method's pixels: frequencies, or latents of a generator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from datastill.core.errors import InputError, nearest
from datastill.core.overrides import Override
from datastill.core.ranges import Amount, check_fields

if TYPE_CHECKING:
    from datastill.core.plan import Init, Plan, Task

#: Of the frequencies, kept where no number is given; real images of which their variances are taken.
_PART, _LOOKED_AT = 16, 2000


class Codes(Override):
    """One kind of codes, with its options as the fields of a dataclass."""

    option = "codes"
    label = "codes"
    default = "method"
    help = (
        "or dct: the frequencies of images that vary most, and several images for one (dct:kept=64,instances=16); "
        "or glad: latents of a style-based generator (glad:layer=f2); or ld3m: of a latent diffusion model"
    )
    how: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_fields(self, "{name} of codes")

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The kind, with its options: "dct:kept=64"."""
        from datastill.data.sources import split_options, typed_option

        if text == cls.default:
            return None
        how, given = split_options(text)
        kinds = _kinds()
        if how not in kinds:
            raise InputError(f"There are no codes {how!r}. {nearest(how, (cls.default, *kinds))}")
        defaults = {f.name: f.default for f in fields(kinds[how])}
        unknown = [name for name in given if name not in defaults]
        if unknown:
            raise InputError(f"Codes have no option {unknown[0]!r}. {nearest(unknown[0], tuple(defaults))}")
        typed = {name: typed_option(value, defaults[name], f"{how}:{name}") for name, value in given.items()}
        return cast("Self", kinds[how](**typed))

    def describe(self) -> dict[str, Any]:
        """The kind and its options."""
        return {"how": self.how, **asdict(self)}

    @classmethod
    def schema(cls) -> Any:
        """The kind and its options."""
        from datastill.decoders.networks import CodesRecord

        return CodesRecord

    @classmethod
    def told(cls, record: Mapping[str, Any]) -> tuple[str, str]:
        """Images stored as so and so."""
        return "Images stored as", cls.text(record)

    @classmethod
    def text(cls, record: Mapping[str, Any]) -> str:
        """ "dct:kept=64,instances=16"."""
        options = ",".join(f"{name}={value}" for name, value in record.items() if name != "how" and value != "")
        return f"{record['how']}:{options}"

    @property
    def folder(self) -> str:
        """A folder of the user's that the options name; "" where there is none."""
        return ""

    @classmethod
    def placed(cls, text: str) -> str:
        """See `Override`."""
        made = cls.parse(text)
        folder = "" if made is None else made.folder
        return text.replace(f"={folder}", f"={Path(folder).resolve()}") if folder else text

    @classmethod
    def phrase(cls, record: Mapping[str, Any]) -> tuple[str, str]:
        """For the card."""
        return f", stored as {_WORDS.get(record['how'], 'codes')}", cls.text(record)


_WORDS = {"dct": "frequencies", "glad": "latents of a generator", "ld3m": "latents of a diffusion model"}


def whole_images(plan: Plan, method: str) -> None:
    """Refuse a plan whose stored images hold several already.

    Raises:
        InputError: they do.
    """
    from datastill.decoders.multi_formation import MultiFormation
    from datastill.decoders.pixels import Pixels

    if not (
        isinstance(plan.decoder, Pixels) or (isinstance(plan.decoder, MultiFormation) and plan.decoder.factor == 1)
    ):
        raise InputError(f"{method} stores more than one image in a stored one already; with --codes, give --factor 1.")


@dataclass(frozen=True)
class Frequencies(Codes):
    """A few coefficients of the discrete cosine transform, and several images in the room of one ("dct:kept=64").

    The frequencies are those in which real images vary most, the same for all images and channels (FreD: Shin et al.,
    NeurIPS 2023, arXiv:2311.08819).
    """

    how = "dct"
    kept: Amount = 0  #: frequencies of each channel; 0 keeps a sixteenth of them
    instances: Amount = 0  #: images that a stored one holds; 0 takes as many as take the numbers of one

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


def _of_several(plan: Plan, method: str, instances: int) -> Init:
    """The start with `instances` real images for every stored one.

    Raises:
        InputError: what the plan stores, or where it starts, leaves no room for frequencies.
    """
    from datastill.sampling.inits import MixReal, RandomReal, SeveralReal

    whole_images(plan, method)
    if plan.init not in (RandomReal(), MixReal(1)):
        raise InputError(f"Frequency codes begin as random real images; with --codes, leave {method} its --init real.")
    return SeveralReal(instances)


def _kinds() -> dict[str, type[Codes]]:
    from datastill.overrides._latents import DiffusionCodes, StyleCodes

    return {kind.how: kind for kind in (Frequencies, StyleCodes, DiffusionCodes)}


OVERRIDE = Codes
