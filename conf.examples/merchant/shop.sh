# What a shop needs of Affiliated: README.md beside this has the five minutes. Takes sign.sh along; needs curl and openssl.
#
#   sh shop.sh landing 'affiliate_click_id=06h0...&utm_source=x' [DAYS]     the header that keeps the click in a cookie
#   sh shop.sh tell STATUS ORDER CLICK_ID [AMOUNT CURRENCY [REFUND_ID]]     reports, through the outbox
#   sh shop.sh try  STATUS ORDER CLICK_ID [AMOUNT CURRENCY [REFUND_ID]]     what would become of it; nothing is recorded
#   sh shop.sh send [now]                                                   what is due in the outbox; for cron
#   sh shop.sh outbox                                                       what waits, and what was refused for good
#   sh shop.sh api METHOD PATH [JSON | @FILE.csv [IDEMPOTENCY_KEY]]         any call of the API

# shellcheck disable=SC2034,SC2154 # body, status and answer are set by sign.sh
set -eu
sign_is_read=1
. "$(dirname "$0")/sign.sh"

# One file an event: when it is due, how often it was tried, its key, the event, and the last answer; a line each.
outbox=${AFFILIATE_OUTBOX:-outbox}

# The Set-Cookie of a page that a buyer lands on. The second argument: the campaign's attribution window in days.
landing() {
    click=$(printf %s "&$1" | sed -n 's/.*&affiliate_click_id=\([0-9a-z]\{39\}\)\(&.*\)*$/\1/p')
    if [ -n "$click" ]; then
        echo "Set-Cookie: affiliate_click_id=$click; Max-Age=$((${2:-30} * 86400)); Path=/; Secure; HttpOnly; SameSite=Lax"
    else
        echo 'no click'
    fi
}

quoted() {
    case $1 in
        *[[:cntrl:]]*) echo "no text for JSON: $1" >&2; exit 2 ;;
    esac
    printf '"%s"' "$(printf %s "$1" | sed 's/[\\"]/\\&/g')"
}

event_of() { # status order click [amount currency [refund]]
    printf '{"status":%s,"order_id":%s,"click_id":%s' "$(quoted "$1")" "$(quoted "$2")" "$(quoted "$3")"
    [ -z "${4-}" ] || printf ',"amount":%s,"currency":%s' "$(quoted "$4")" "$(quoted "${5-}")"
    [ -z "${6-}" ] || printf ',"refund_id":%s' "$(quoted "$6")"
    printf '}'
}

# As a whole, or not at all.
write() { # path lines...
    target=$1
    part=${1%/*}/.${1##*/}.$$
    shift
    mkdir -p "${target%/*}"
    for line; do
        printf '%s\n' "$line" | tr '\n' ' '
        echo
    done >"$part"
    mv "$part" "$target"
}

# Keeps the event, then tries to send it.
tell() {
    event=$(event_of "$@")
    # The same event has the same key, whenever and however often it is told.
    key=$1-$(printf %s "$event" | openssl dgst -sha256 -r | cut -c 1-32)
    write "$outbox/$key" 0 0 "$key" "$event" ''
    send_file "$outbox/$key"
}

# The lines of a file, without the blanks that write() leaves at their ends.
read_event() {
    { read -r due; read -r tries; read -r key; read -r event; read -r answer; } <"$1"
}

# Sent, it is gone; refused for good, it moves to refused/; else it waits 1, 2, 4 ... 60 minutes for the next try.
send_file() {
    read_event "$1"
    tries=$((tries + 1))
    printf %s "$event" >"$body"
    attempt POST "${AFFILIATE_URL:?is not set}" "$key" "$body" application/json
    case $status in
        2??)
            rm -f "$1"
            ;;
        000 | 401 | 403 | 408 | 409 | 429 | 5??) # not this event's fault
            wait=3600
            [ $tries -gt 6 ] || wait=$((60 << (tries - 1)))
            write "$1" "$(($(date +%s) + wait))" "$tries" "$key" "$event" "$status $answer"
            ;;
        *)
            write "$outbox/refused/$key" 0 "$tries" "$key" "$event" "$status $answer"
            rm -f "$1"
            ;;
    esac
}

# Two at once send an event twice, which counts once.
send() {
    failed=0
    for file in "$outbox"/[a-z]*-*; do
        [ -f "$file" ] || continue
        read_event "$file"
        [ "${1-}" = now ] || [ "$due" -le "$(date +%s)" ] || continue
        send_file "$file"
        echo "$status ${file##*/}"
        case $status in
            2??) ;;
            *) failed=1 ;;
        esac
    done
    return $failed
}

list_outbox() {
    for file in "$outbox"/[a-z]*-* "$outbox"/refused/[a-z]*-*; do
        [ -f "$file" ] || continue
        state=waiting
        case $file in
            "$outbox"/refused/*) state=refused ;;
        esac
        read_event "$file"
        printf '%s, tried %s times: %s %s\n' "$state" "$tries" "$event" "$answer"
    done
}

# Sent again within this call it counts once; give a key of your own for calls that may be repeated later.
api() { # method path [json | @file [key]]
    type=application/json
    case ${3-} in
        @*) cat "${3#@}" >"$body" || exit 2; type=text/csv ;;
        *) printf %s "${3-}" >"$body" ;;
    esac
    key=${4-}
    [ -n "$key" ] || [ "$1" != POST ] || key=$(openssl rand -hex 16)
    call "$1" "${AFFILIATE_API:?is not set}$2" "$key" "$body" "$type"
}

command=${1-}
[ $# -eq 0 ] || shift
body_file
case $command/$# in
    landing/[12])
        landing "$@"
        ;;
    tell/[3456])
        tell "$@"
        show
        ;;
    try/[3456])
        api POST "/merchants/${AFFILIATE_MERCHANT:?is not set}/dry-runs" "{\"body\":$(quoted "$(event_of "$@")")}"
        show
        ;;
    send/0 | send/1)
        send "$@"
        ;;
    outbox/0)
        list_outbox
        ;;
    api/[234])
        api "$@"
        show
        ;;
    *)
        sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
