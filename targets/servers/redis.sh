#!/bin/sh
# Starts Redis in the current directory: `redis.sh [repair] OPTIONS`. With `repair` it is started as its
# manual tells when the end of its log is damaged.
set -e
if [ "$1" = repair ]; then
    shift
    manifest=appendonlydir/appendonly.aof.manifest
    if [ -s "$manifest" ]; then
        yes | redis-check-aof --fix "$manifest" >&2
    fi
fi
exec redis-server --save '' --appendonly yes "$@"
