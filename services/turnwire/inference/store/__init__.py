"""What the inference service keeps: the registrations of models."""
