#!/bin/sh
# Run Redis with CLIPSynth's settings: accepted jobs are on disk before the answer, no key is evicted when
# memory runs out, and clients need a password.
# Read the password's file here, so that no command line shows the password.
set -eu
umask 077
exec redis-server - <<EOF
port ${REDIS_PORT:-6379}
dir ${REDIS_DIR:-/data}
requirepass $(cat "${SECRETS_DIR:-/run/secrets}/clipsynth_redis_password")
appendonly yes
appendfsync always
save ""
maxmemory ${REDIS_MAXMEMORY:-1gb}
maxmemory-policy noeviction
loglevel warning
EOF
