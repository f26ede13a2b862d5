"""The tool executor service. The execution of tools comes with a later version; the process runs, and says so."""
