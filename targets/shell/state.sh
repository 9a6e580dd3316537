# shellcheck shell=sh disable=SC2034
# The state that the shell subjects save, some 600 bytes of JSON, a line a write.
VERSIONS=4

sample() {
    echo "{\"version\": $1, \"balance\": $((1000000 + 137 * $1)), \"positions\": ["
    n=0
    # Every other version is shorter, so that an overwrite without truncation shows.
    while [ "$n" -lt $((10 - $1 % 2)) ]; do
        echo "{\"symbol\": \"SYM$n\", \"quantity\": $((n + $1))},"
        n=$((n + 1))
    done
    echo "{\"symbol\": \"LAST\", \"quantity\": 0}]}"
}
