"""Many runs from one configuration: grids, studies and their reports."""
