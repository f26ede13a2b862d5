"""The sandbox runner service: it runs model-written code, and nothing else."""
