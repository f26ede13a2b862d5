"""The safety service. Screening of contents comes with a later version; the process runs, and says so."""
