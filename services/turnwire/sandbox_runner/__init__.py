"""The sandbox runner service. Running model-written code comes with a later version; the process runs, and says so."""
