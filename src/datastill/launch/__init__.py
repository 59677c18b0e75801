"""Independent units of work, one after the other or over a pool of processes, with equal results."""

from datastill.launch.scheduler import check_workers, run_units
from datastill.launch.units import Done, Failure, Function, Unit, UnitsFailed, one_thread

__all__ = ["Done", "Failure", "Function", "Unit", "UnitsFailed", "check_workers", "one_thread", "run_units"]
