"""The four training stages: vae, base, relu, ufogen."""
