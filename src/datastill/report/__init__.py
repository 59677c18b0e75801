"""What a run looks like: snapshots on the way, pictures, the card and the HTML report."""

from datastill.report.card import card, write_card_and_preview
from datastill.report.diagnostics import Diagnosis, diagnose
from datastill.report.folder import write_run
from datastill.report.html import write_report
from datastill.report.snapshots import Snapshots, Timeline, load_snapshots

__all__ = [
    "Diagnosis",
    "Snapshots",
    "Timeline",
    "card",
    "diagnose",
    "load_snapshots",
    "write_card_and_preview",
    "write_report",
    "write_run",
]
