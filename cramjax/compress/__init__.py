"""Makes trained models smaller: prunes, quantises, measures, writes at the true size."""
