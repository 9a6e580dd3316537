#!/bin/sh
# Saves by redirecting into a temp file and moving it into place.
#
# The text is made first and written by one printf: of a function that prints a line at a time, only
# the last line's failure would be seen. Nor does `set -e` see what fails before an `&&`.
set -e
# shellcheck source=targets/shell/state.sh
. "$(dirname "$0")/state.sh"

version=1
while [ "$version" -le "$VERSIONS" ]; do
    text=$(sample "$version")
    printf '%s\n' "$text" > state.json.tmp
    mv -f state.json.tmp state.json
    echo "saved $version"
    version=$((version + 1))
done
