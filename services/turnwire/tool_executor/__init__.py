"""The tool executor service: tools, the journal of their executions, and the files that sessions keep."""
