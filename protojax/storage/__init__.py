"""Files that are whole or not there, and checkpoints that are checked."""
