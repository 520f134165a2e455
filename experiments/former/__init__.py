"""Parts of the former group test, which the arms that compare with it still need."""
