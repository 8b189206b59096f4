#!/bin/sh
# Make the password of Redis once; a file that is there stays.
set -eu
file="${SECRETS_DIR:-/run/secrets}/clipsynth_redis_password"
if [ ! -s "$file" ]; then
    umask 022
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$file.new"
    mv "$file.new" "$file"
fi
