#!/bin/sh
# Signs calls to Affiliated; by itself it reports an order. Needs curl and openssl.
#
#   export AFFILIATE_URL=https://go.example.com/v1/conversions
#   export AFFILIATE_KEY=ak_live_... AFFILIATE_SECRET=aks_live_...
#   ./sign.sh NP-1001-approved '{"click_id":"...","order_id":"NP-1001","status":"approved","amount":"1250.50","currency":"NPR"}'
#
# The first argument is the Idempotency-Key: one for each event, and the same one whenever that event is sent again.
# Prints status and answer; exit code 0 if the event was accepted. `./sign.sh --vector` prints the documented signature.

set -eu

# HMAC's key, padded to SHA-256's block of 64 bytes, each byte xor $1 (RFC 2104). By the shell itself, because what is
# an argument of openssl can be seen by every user of the host.
pad() {
    left=64
    for byte in $(printf %s "$AFFILIATE_SECRET" | od -An -v -tu1); do
        printf '%b' "\\0$(printf %03o $((byte ^ $1)))"
        left=$((left - 1))
    done
    while [ $left -gt 0 ]; do
        printf '%b' "\\0$(printf %03o "$1")"
        left=$((left - 1))
    done
}

# The bytes that are sent must be the bytes that are signed: both are read from one file.
sign() { # timestamp method path_with_query idempotency_key body_file
    { pad 54; printf 'v1\n%s\n%s\n%s\n%s\n' "$1" "$2" "$3" "$4"; cat "$5"; } | openssl dgst -sha256 -binary |
        { pad 92; cat; } | openssl dgst -sha256 -r | cut -d ' ' -f 1
}

# One call: sets $status (000 if there was no answer) and $answer.
attempt() { # method url idempotency_key body_file type
    : "${AFFILIATE_KEY:?is not set}" "${AFFILIATE_SECRET:?is not set}"
    path=${2#*://}
    case $path in
        */*) path=/${path#*/} ;;
        *) path=/ ;;
    esac
    now=$(date +%s)
    signature=$(sign "$now" "$1" "$path" "$3" "$4")
    if [ -s "$4" ]; then
        set -- "$@" --header "Content-Type: $5" --data-binary "@$4"
    fi
    if [ -n "$3" ]; then
        set -- "$@" --header "Idempotency-Key: $3"
    fi
    method=$1 url=$2
    shift 5
    answer=$(curl --silent --show-error --max-time 10 --request "$method" --write-out '\n%{http_code}' \
        --header "Affiliate-Key: $AFFILIATE_KEY" --header "Affiliate-Timestamp: $now" \
        --header "Affiliate-Signature: v1=$signature" "$@" "$url" 2>&1) || answer="no answer: ${answer%
*}
000"
    status=${answer##*
}
    answer=${answer%
*}
}

# Whether a call without an answer, or with 5xx, was taken is unknown: sent again under the same key it counts once.
# Each attempt has a time of its own, and so a signature of its own.
call() {
    for pause in 1 2 4 8 0; do
        attempt "$@"
        case $status in
            000 | 5??) sleep $pause ;;
            *) break ;;
        esac
    done
}

show() {
    printf '%s\n%s\n' "$status" "$answer"
    case $status in
        2??) return 0 ;;
        *) return 1 ;;
    esac
}

# Sets $body to a file of this process' own.
body_file() {
    body=$(mktemp)
    trap 'rm -f "$body"' EXIT
}

[ -z "${sign_is_read-}" ] || return 0 # by shop.sh

body_file
if [ "${1-}" = --vector ]; then
    AFFILIATE_SECRET=aks_test_3fQ9Zr7mW2
    printf %s '{"click_id":"c_01J9","order_id":"NP-1001","status":"approved","amount":"1250.50","currency":"NPR"}' >"$body"
    sign 1764000000 POST /v1/conversions NP-1001-approved "$body"
    exit
fi

if [ $# -ne 2 ]; then
    echo "usage: $0 IDEMPOTENCY_KEY JSON" >&2
    exit 2
fi
printf %s "$2" >"$body"
call POST "${AFFILIATE_URL:?is not set}" "$1" "$body" application/json
show
