"""What models give away of their training data: attacks, figures, checks."""

from protojax.privacy.findings import Leakage
from protojax.privacy.leakage import audit, leakage, naturally_worst
from protojax.privacy.membership_attacks import MEMBERSHIP_ATTACKS, label_log_odds
from protojax.privacy.memberships import (
    coin_flips,
    complement_of,
    complementary_halves,
)

__all__ = ["MEMBERSHIP_ATTACKS", "Leakage", "audit", "coin_flips", "complement_of"]
__all__ += ["complementary_halves", "label_log_odds", "leakage", "naturally_worst"]
