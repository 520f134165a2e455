"""What a user reads of a defence: tables, a page, a model card."""

from protojax.reports.card import card_of
from protojax.reports.facts import Facts, Reaction, headline, triggers
from protojax.reports.page import page_of
from protojax.reports.tables import safe, verdict_table, write_csv

__all__ = [
    "Facts",
    "Reaction",
    "card_of",
    "headline",
    "page_of",
    "safe",
    "triggers",
    "verdict_table",
    "write_csv",
]
