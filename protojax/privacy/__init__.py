"""The leakage of training data by models: attacks, figures, checks.

`audit` runs a training of any framework and `leakage` attacks saved logits; both give a
`Leakage`. Nothing here holds a text of the private rows, but `scan` and `blind_auc`
read them.
"""

from protojax.privacy.blind import blind_auc, require_blind
from protojax.privacy.canaries import CANARIES
from protojax.privacy.dp_audit import (
    audited,
    epsilon_lower_bound,
    epsilon_one_run,
    require_stated,
)
from protojax.privacy.exposure import exposure, suffix_tree_log_probs
from protojax.privacy.findings import ALWAYS, ORDINARY, Leakage
from protojax.privacy.leakage import audit, leakage, naturally_worst
from protojax.privacy.membership_attacks import MEMBERSHIP_ATTACKS, label_log_odds
from protojax.privacy.memberships import (
    coin_flips,
    complement_of,
    complementary_halves,
)
from protojax.privacy.overlap import Overlap, require_clean, scan
from protojax.privacy.probes import Secret, planted, texts_of
from protojax.privacy.rates import clopper_pearson, true_positive_rate

__all__ = ["ALWAYS", "CANARIES", "MEMBERSHIP_ATTACKS", "ORDINARY", "Leakage", "Overlap"]
__all__ += ["Secret", "audit", "audited", "blind_auc", "clopper_pearson", "coin_flips"]
__all__ += ["complement_of", "complementary_halves", "epsilon_lower_bound"]
__all__ += ["epsilon_one_run", "exposure", "label_log_odds", "leakage"]
__all__ += ["naturally_worst", "planted", "require_blind", "require_clean"]
__all__ += ["require_stated", "scan", "suffix_tree_log_probs", "texts_of"]
__all__ += ["true_positive_rate"]
