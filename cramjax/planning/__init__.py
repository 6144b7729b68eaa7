"""What a run would take on a device that is not here: compiled for it where its compiler is installed, by formulas elsewhere."""
