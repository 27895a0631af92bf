"""The training stages: vae, base, relu, pairs, ufogen, decoder and words."""
