#!/bin/sh
# Saves by redirecting into a temp file and moving it into place.
set -e
# shellcheck source=targets/shell/state.sh
. "$(dirname "$0")/state.sh"

version=1
while [ "$version" -le "$VERSIONS" ]; do
    sample "$version" > state.json.tmp && mv state.json.tmp state.json
    echo "saved $version"
    version=$((version + 1))
done
