#!/bin/sh
# Sound: a lock, a new file with a checksum, fsync, rename, fsync of the directory, a second copy.
# It needs flock(1) of util-linux, and sync(1) and sha256sum(1) of coreutils.
set -eu
# shellcheck source=targets/shell/state.sh
. "$(dirname "$0")/state.sh"

# --- lock
# Holds the lock of a state for as long as this process lives.
lock() {
    exec 9>>"$1.lock"
    flock --nonblock 9 || { echo "another process works with $1" >&2; exit 1; }
}
# --- end

# --- replace
# Puts what comes on stdin in the place of a file, so that it is the old or the new one, and on disk.
replace() {
    # What a process of this number has left there is overwritten.
    temp=$(dirname "$1")/.state-$$.tmp
    if cat >"$temp" && sync "$temp" && mv -T "$temp" "$1"; then
        sync "$(dirname "$1")"
    else
        rm -f "$temp"
        return 1
    fi
}
# --- end

# --- save
# Saves twice, so that one copy can be damaged; it is saved when this returns.
save() {
    rest=$(printf '"sequence": %d, "state": %s}' "$2" "$3")
    sum=$(printf '%s\n' "$rest" | sha256sum | cut -d ' ' -f 1)
    data=$(printf '{"sha256": "%s", %s' "$sum" "$rest")
    printf '%s\n' "$data" | replace "$1" && printf '%s\n' "$data" | replace "$1.copy"
}
# --- end

# --- load
# Prints the number in a file if all of it is there, and else nothing.
whole() {
    { [ -f "$1" ] && [ -r "$1" ]; } || return 0
    # 79 bytes: {"sha256": " and the sum and ", and then what it is of.
    sum=$(tail -c +80 "$1" | sha256sum | cut -d ' ' -f 1)
    if printf '{"sha256": "%s", ' "$sum" | cmp -s - "$1" -n 79; then
        tail -c +80 "$1" | sed -n 's/^"sequence": \([0-9]*\), .*/\1/p' | head -n 1
    fi
}

# Prints the newest state that is whole; fails if there is none, though there was one. What is damaged is
# kept aside.
load() {
    mine=$(whole "$1")
    copy=$(whole "$1.copy")
    if [ -z "$mine$copy" ]; then
        if [ -e "$1" ] || [ -L "$1" ] || [ -e "$1.copy" ] || [ -L "$1.copy" ]; then
            echo "$1 and its copy are damaged" >&2
            return 1
        fi
        echo "there is no state: beginning anew" >&2
        echo null
        return
    fi
    from=$1
    if [ "${mine:--1}" -lt "${copy:--1}" ]; then
        echo "$1 is damaged or old: taking its copy" >&2
        from=$1.copy
        if [ -e "$1" ] || [ -L "$1" ]; then
            mv -T "$1" "$1.damaged-$(date +%s%N)"
        fi
    fi
    tail -c +80 "$from" | sed '1s/^"sequence": [0-9]*, "state": //; $s/}$//'
}
# --- end

lock state.json
rm -f .state-*
state=$(load state.json)
if [ "${1:-}" = load ]; then
    printf '%s\n' "$state"
    exit
fi
version=1
while [ "$version" -le "$VERSIONS" ]; do
    save state.json "$version" "$(sample "$version")"
    echo "saved $version"
    version=$((version + 1))
done
