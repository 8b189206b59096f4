#!/usr/bin/env bash
# Write the locks of the images, docker/*.lock: each package and the hashes of its files, without PyTorch's.
# Needs pip-tools. Run it when pyproject.toml or constraints.txt changes.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
for roles in app "app s3" worker train; do
    role=${roles##* }
    # shellcheck disable=SC2086
    python3 docker/requirements.py pyproject.toml $roles > "$folder/$role.in"
    pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
        --constraint constraints.txt --output-file "$folder/$role.txt" "$folder/$role.in"
    # An entry goes on while its lines end in a backslash.
    awk '!more { left_out = /^(#|$|(setuptools|torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==)/ }
        !left_out { print }
        { more = /\\$/ }' "$folder/$role.txt" > "docker/$role.lock"
done
