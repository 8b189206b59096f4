#!/bin/sh
# Redis as CLIPSynth needs it: what was accepted is on disk before it is answered, nothing is thrown out for want of memory, and a password is asked for.
# The password's file is read here, so that it is in no command line.
set -eu
exec redis-server - <<EOF
port ${REDIS_PORT:-6379}
dir ${REDIS_DIR:-/data}
requirepass $(cat "${SECRETS_DIR:-/run/secrets}/clipsynth_redis_password")
appendonly yes
appendfsync always
save ""
maxmemory-policy noeviction
loglevel warning
EOF
