"""The memory service. Memory banks comes with a later version; the process runs, and says so."""
