"""The inference service: models, and the providers that serve them."""
