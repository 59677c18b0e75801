"""Networks to match on that were trained to resist a bias, in the place of fresh random ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from datastill.core.errors import InputError
from datastill.core.overrides import Override

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task
    from datastill.models.factory import NetworkFactory
    from datastill.surrogates.debiased import DebiasedSurrogates


@dataclass(frozen=True)
class Surrogates(Override):
    """A pool of networks, "dfa" or "selecmix", with options as in "dfa:count=3,steps=600"."""

    option = "surrogates"
    label = "surrogates"
    default = "method"
    help = "or dfa, selecmix: networks trained to resist a bias, for dm, dm-fast and datadam (dfa:count=3)"

    pool: DebiasedSurrogates

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """See `DebiasedSurrogates.parse`."""
        from datastill.surrogates.debiased import DebiasedSurrogates

        pool = DebiasedSurrogates.parse(text)
        return None if pool is None else cls(pool)

    @staticmethod
    def fits(plan: Plan) -> bool:
        """Whether the plan matches on a network of its own for each step, which others can stand in for."""
        return _factory(plan) is not None

    def apply(self, plan: Plan, method: str, task: Task) -> Plan:
        """The plan on the pool, which is prepared first."""
        from datastill.surrogates.debiased import DebiasedPool

        factory = _factory(plan)
        if factory is None:
            raise InputError(
                f"{method} does not match on fresh random networks, so none can stand in for them; of the methods "
                "here dm, dm-fast and datadam do, and mtt takes expert_policy=selecmix."
            )
        units = self.pool.units(factory)
        return replace(plan, surrogates=DebiasedPool(units), prepare=[*plan.prepare, *units])

    def describe(self) -> dict[str, Any]:
        """The way and its options."""
        return self.pool.describe()

    @classmethod
    def schema(cls) -> Any:
        """The way and its options."""
        from datastill.surrogates.debiased import PoolRecord

        return PoolRecord

    @classmethod
    def told(cls, record: Mapping[str, Any]) -> tuple[str, str]:
        """Networks that were trained in a way."""
        return "Networks matched on", f"trained by {cls.text(record)}"

    @classmethod
    def text(cls, record: Mapping[str, Any]) -> str:
        """ "dfa:steps=600,count=3"."""
        from datastill.data.sources import join_options

        return join_options(record["how"], {name: item for name, item in record.items() if name != "how"})

    @classmethod
    def phrase(cls, record: Mapping[str, Any]) -> tuple[str, str]:
        """For the card."""
        return " trained to resist a bias", cls.text(record)


def _factory(plan: Plan) -> NetworkFactory | None:
    """What builds the plan's networks, where others can stand in for them."""
    from datastill.core.plan import Exchangeable

    drawn = plan.surrogates
    return drawn.factory if isinstance(drawn, Exchangeable) and drawn.draws == "network" else None


OVERRIDE = Surrogates
