"""Networks that grow while they are trained."""
