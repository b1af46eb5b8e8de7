"""What a shop needs of Affiliated: README.md beside this has the five minutes. Takes sign.py along, and nothing else.

    python3 shop.py landing 'affiliate_click_id=06h0...&utm_source=x' [DAYS]     the header that keeps the click in a cookie
    python3 shop.py tell STATUS ORDER CLICK_ID [AMOUNT CURRENCY [REFUND_ID]]     reports, through the outbox
    python3 shop.py try  STATUS ORDER CLICK_ID [AMOUNT CURRENCY [REFUND_ID]]     what would become of it; nothing is recorded
    python3 shop.py send [now]                                                   what is due in the outbox; for cron
    python3 shop.py outbox                                                       what waits, and what was refused for good
    python3 shop.py api METHOD PATH [JSON | @FILE.csv [IDEMPOTENCY_KEY]]         any call of the API

In a shop of your own: landing_cookie(), click_of() and tell().
"""

import hashlib
import json
import os
import re
import sys
import time
import urllib.parse
import uuid
from pathlib import Path

from sign import attempt, call, settings, show

CLICK_ID = re.compile(r"[0-9a-z]{39}")


def landing_cookie(query_string, days=30):
    """The Set-Cookie of a page that a buyer lands on, or None. `days`: the campaign's attribution window."""
    click = urllib.parse.parse_qs(query_string).get("affiliate_click_id", [""])[-1]
    if not CLICK_ID.fullmatch(click):
        return None
    return f"affiliate_click_id={click}; Max-Age={days * 86400}; Path=/; Secure; HttpOnly; SameSite=Lax"


def click_of(cookie_header):
    """The buyer's click at the order, out of the header Cookie; None if nobody sent him. Keep it with the order."""
    found = re.search(r"(?:^|;\s*)affiliate_click_id=([0-9a-z]{39})(?:;|$)", cookie_header or "")
    return found[1] if found else None


def outbox():
    """One file an event: when it is due, how often it was tried, its key, the event, and the last answer; a line each."""
    return Path(os.environ.get("AFFILIATE_OUTBOX", "outbox"))


def write(path, *lines):
    """As a whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(part, "w", encoding="utf-8") as file:
        file.write("".join(str(line).replace("\n", " ") + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


def tell(event):
    """Keeps the event, then tries to send it: call it when the order's own transaction is done. (status, answer)"""
    body = json.dumps(event, sort_keys=True)
    # The same event has the same key, whenever and however often it is told.
    key = f"{event['status']}-{hashlib.sha256(body.encode()).hexdigest()[:32]}"
    write(outbox() / key, 0, 0, key, body, "")
    return send_file(outbox() / key)


def send_file(path):
    """Sent, it is gone; refused for good, it moves to refused/; else it waits 1, 2, 4 ... 60 minutes for the next try."""
    _, tries, key, body, _ = path.read_text(encoding="utf-8").split("\n")[:5]
    tries = int(tries) + 1
    (url,) = settings("AFFILIATE_URL")
    status, answer = attempt("POST", url, key, body.encode())
    if 200 <= status < 300:
        path.unlink(missing_ok=True)
    elif status in (0, 401, 403, 408, 409, 429) or status >= 500:  # not this event's fault
        write(path, int(time.time()) + min(60 * 2 ** (tries - 1), 3600), tries, key, body, f"{status:03} {answer}")
    else:
        write(outbox() / "refused" / key, 0, tries, key, body, f"{status:03} {answer}")
        path.unlink(missing_ok=True)
    return status, answer


def waiting(directory):
    return sorted(path for path in directory.glob("[a-z]*-*") if path.is_file())


def send(now=False):
    """Two at once send an event twice, which counts once."""
    failed = 0
    for path in waiting(outbox()):
        if now or int(path.read_text(encoding="utf-8").split("\n")[0]) <= time.time():
            status, answer = send_file(path)
            print(f"{status:03} {path.name}")
            failed |= not 200 <= status < 300
    return int(failed)


def list_outbox():
    for state, directory in (("waiting", outbox()), ("refused", outbox() / "refused")):
        for path in waiting(directory):
            _, tries, _, body, answer = path.read_text(encoding="utf-8").split("\n")[:5]
            print(f"{state}, tried {tries} times: {body} {answer}")
    return 0


def event_of(status, order, click, amount="", currency="", refund=""):
    event = {"status": status, "order_id": order, "click_id": click, "amount": amount, "currency": currency, "refund_id": refund}
    return {name: value for name, value in event.items() if value}


def api(method, path, body="", key=""):
    (base,) = settings("AFFILIATE_API")
    content_type = "application/json"
    if body.startswith("@"):
        body, content_type = Path(body[1:]).read_bytes(), "text/csv"
    else:
        body = body.encode()
    # Sent again within this call it counts once; give a key of your own for calls that may be repeated later.
    return call(method, base + path, key or (str(uuid.uuid4()) if method == "POST" else ""), body, content_type)


def main(arguments):
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command == "landing" and len(rest) in (1, 2):
        cookie = landing_cookie(rest[0], *map(int, rest[1:]))
        print(f"Set-Cookie: {cookie}" if cookie else "no click")
        return 0
    if command == "tell" and 3 <= len(rest) <= 6:
        return show(*tell(event_of(*rest)))
    if command == "try" and 3 <= len(rest) <= 6:
        (merchant,) = settings("AFFILIATE_MERCHANT")
        return show(*api("POST", f"/merchants/{merchant}/dry-runs", json.dumps({"body": json.dumps(event_of(*rest))})))
    if command == "send" and rest in ([], ["now"]):
        return send(bool(rest))
    if command == "outbox" and not rest:
        return list_outbox()
    if command == "api" and 2 <= len(rest) <= 4:
        return show(*api(*rest))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
