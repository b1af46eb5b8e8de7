#!/bin/sh
# Reports an order to Affiliated. Needs curl and openssl.
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

sign() { # timestamp method path_with_query idempotency_key body
    { pad 54; printf 'v1\n%s\n%s\n%s\n%s\n%s' "$1" "$2" "$3" "$4" "$5"; } | openssl dgst -sha256 -binary |
        { pad 92; cat; } | openssl dgst -sha256 -r | cut -d ' ' -f 1
}

if [ "${1-}" = --vector ]; then
    AFFILIATE_SECRET=aks_test_3fQ9Zr7mW2
    sign 1764000000 POST /v1/conversions NP-1001-approved \
        '{"click_id":"c_01J9","order_id":"NP-1001","status":"approved","amount":"1250.50","currency":"NPR"}'
    exit
fi

if [ $# -ne 2 ]; then
    echo "usage: $0 IDEMPOTENCY_KEY JSON" >&2
    exit 2
fi
: "${AFFILIATE_URL:?is not set}" "${AFFILIATE_KEY:?is not set}" "${AFFILIATE_SECRET:?is not set}"

path=${AFFILIATE_URL#*://}
case $path in
    */*) path=/${path#*/} ;;
    *) path=/ ;;
esac

# Whether a call without an answer, or with 5xx, was taken is unknown: sent again under the same key it counts once.
# Each attempt has a time of its own, and so a signature of its own.
for pause in 1 2 4 8 0; do
    now=$(date +%s)
    signature=$(sign "$now" POST "$path" "$1" "$2")
    answer=$(printf %s "$2" | curl --silent --show-error --max-time 10 --data-binary @- --write-out '\n%{http_code}' \
        --header 'Content-Type: application/json' --header "Affiliate-Key: $AFFILIATE_KEY" \
        --header "Affiliate-Timestamp: $now" --header "Idempotency-Key: $1" \
        --header "Affiliate-Signature: v1=$signature" "$AFFILIATE_URL") || answer="no answer
000"
    status=${answer##*
}
    case $status in
        000 | 5??) [ $pause -gt 0 ] && sleep $pause ;;
        *) break ;;
    esac
done

printf '%s\n%s\n' "$status" "${answer%
*}"
case $status in
    2??) exit 0 ;;
    *) exit 1 ;;
esac
