#!/usr/bin/env python3
"""Signs calls to Affiliated, with nothing but Python's standard library; by itself it reports an order.

    export AFFILIATE_URL=https://go.example.com/v1/conversions
    export AFFILIATE_KEY=ak_live_... AFFILIATE_SECRET=aks_live_...
    ./sign.py NP-1001-approved '{"click_id":"...","order_id":"NP-1001","status":"approved","amount":"1250.50","currency":"NPR"}'

The first argument is the Idempotency-Key: one for each event, and the same one whenever that event is sent again.
Prints status and answer; exit code 0 if the event was accepted. `./sign.py --vector` prints the documented signature.
"""

import hashlib
import hmac
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request


def sign(secret, timestamp, method, path_with_query, idempotency_key, body):
    """The bytes that are sent must be the bytes that are signed: serialise once, use it for both."""
    string_to_sign = f"v1\n{timestamp}\n{method}\n{path_with_query}\n{idempotency_key}\n".encode() + body
    return hmac.new(secret.encode(), string_to_sign, hashlib.sha256).hexdigest()


def attempt(method, url, idempotency_key="", body=b"", content_type="application/json"):
    """One call, signed with AFFILIATE_KEY: (status, answer); status 0 if there was no answer."""
    key, secret = settings("AFFILIATE_KEY", "AFFILIATE_SECRET")
    parts = urllib.parse.urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    now = str(int(time.time()))
    headers = {
        "Affiliate-Key": key,
        "Affiliate-Timestamp": now,
        "Affiliate-Signature": "v1=" + sign(secret, now, method, path, idempotency_key, body),
    }
    if idempotency_key:
        headers["Idempotency-Key"] = idempotency_key
    if body:
        headers["Content-Type"] = content_type
    request = urllib.request.Request(url, data=body or None, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, f"no answer: {error}"


def call(*arguments):
    """Whether a call without an answer, or with 5xx, was taken is unknown: under the same key it counts once."""
    for pause in (1, 2, 4, 8, 0):
        status, answer = attempt(*arguments)
        if 0 < status < 500:
            break
        time.sleep(pause)
    return status, answer


def settings(*names):
    values = [os.environ.get(name, "") for name in names]
    if not all(values):
        print("set", " and ".join(names), file=sys.stderr)
        sys.exit(2)
    return values


def show(status, answer):
    print(f"{status:03}\n{answer}")
    return 0 if 200 <= status < 300 else 1


def main(arguments):
    if arguments == ["--vector"]:
        body = b'{"click_id":"c_01J9","order_id":"NP-1001","status":"approved","amount":"1250.50","currency":"NPR"}'
        print(sign("aks_test_3fQ9Zr7mW2", "1764000000", "POST", "/v1/conversions", "NP-1001-approved", body))
        return 0
    if len(arguments) != 2:
        print("usage: sign.py IDEMPOTENCY_KEY JSON", file=sys.stderr)
        return 2
    (url,) = settings("AFFILIATE_URL")
    return show(*call("POST", url, arguments[0], arguments[1].encode()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
