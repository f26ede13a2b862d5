#!/usr/bin/env bash
# Resolves the locks anew: with hashes, for every supported Python, without any index or address.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
command -v uv >/dev/null || .venv/bin/python -m pip install --quiet uv
uv=$(command -v uv || echo .venv/bin/uv)
common=(--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet)
"$uv" pip compile pyproject.toml --extra all --group dev "${common[@]}" -o requirements/all.txt
"$uv" pip compile requirements/generate.in "${common[@]}" -o requirements/generate.txt
