"""Independent units of work: one after the other, over a pool of processes, or over Ray, with equal results."""

from datastill.launch.ray_pool import cluster
from datastill.launch.scheduler import run_units
from datastill.launch.slots import WorkersLost
from datastill.launch.units import Done, Failure, Function, Unit, UnitsFailed, one_thread
from datastill.launch.workers import Workers, check_workers, inside_worker, refuse_inside_worker

__all__ = [
    "Done", "Failure", "Function", "Unit", "UnitsFailed", "Workers", "WorkersLost", "check_workers", "cluster",
    "inside_worker", "one_thread", "refuse_inside_worker", "run_units",
]  # fmt: skip
