"""Tasks, and the texts and models of attacker and defender in a scenario."""
