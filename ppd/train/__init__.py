"""Train: prompt tokens for a frozen model. Documents → sequences and rollouts → packed steps → an adapter's folder."""
