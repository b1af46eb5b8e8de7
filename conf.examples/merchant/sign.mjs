#!/usr/bin/env node
// Reports an order to Affiliated, with nothing but Node (18 or newer).
//
//   export AFFILIATE_URL=https://go.example.com/v1/conversions
//   export AFFILIATE_KEY=ak_live_... AFFILIATE_SECRET=aks_live_...
//   ./sign.mjs NP-1001-approved '{"click_id":"...","order_id":"NP-1001","status":"approved","amount":"1250.50","currency":"NPR"}'
//
// The first argument is the Idempotency-Key: one for each event, and the same one whenever that event is sent again.
// Prints status and answer; exit code 0 if the event was accepted. `./sign.mjs --vector` prints the documented signature.

import { createHmac } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';

// The bytes that are sent must be the bytes that are signed: serialise once, use it for both.
function sign(secret, timestamp, method, pathWithQuery, idempotencyKey, body) {
    return createHmac('sha256', secret)
        .update(`v1\n${timestamp}\n${method}\n${pathWithQuery}\n${idempotencyKey}\n`)
        .update(body)
        .digest('hex');
}

// One attempt; status 0 if there was no answer.
async function post({ url, key, secret }, idempotencyKey, body) {
    const { pathname, search } = new URL(url);
    const now = String(Math.floor(Date.now() / 1000));
    const signature = sign(secret, now, 'POST', pathname + search, idempotencyKey, body);

    try {
        const response = await fetch(url, {
            method: 'POST',
            body,
            headers: {
                'Content-Type': 'application/json',
                'Affiliate-Key': key,
                'Affiliate-Timestamp': now,
                'Idempotency-Key': idempotencyKey,
                'Affiliate-Signature': `v1=${signature}`,
            },
            signal: AbortSignal.timeout(10000),
        });

        return { status: response.status, answer: await response.text() };
    } catch (error) {
        return { status: 0, answer: `no answer: ${error.cause?.message ?? error.message}` };
    }
}

// Whether a call without an answer, or with 5xx, was taken is unknown: sent again under the same key it counts once.
async function report(settings, idempotencyKey, body) {
    let result;

    for (const pause of [1, 2, 4, 8, 0]) {
        result = await post(settings, idempotencyKey, body);
        if (result.status > 0 && result.status < 500) {
            break;
        }
        await sleep(pause * 1000);
    }

    return result;
}

async function main(args) {
    if (args[0] === '--vector') {
        const body = '{"click_id":"c_01J9","order_id":"NP-1001","status":"approved","amount":"1250.50","currency":"NPR"}';

        console.log(sign('aks_test_3fQ9Zr7mW2', '1764000000', 'POST', '/v1/conversions', 'NP-1001-approved', body));
        return 0;
    }

    if (args.length !== 2) {
        console.error('usage: sign.mjs IDEMPOTENCY_KEY JSON');
        return 2;
    }

    const { AFFILIATE_URL: url, AFFILIATE_KEY: key, AFFILIATE_SECRET: secret } = process.env;

    if (!url || !key || !secret) {
        console.error('set AFFILIATE_URL, AFFILIATE_KEY and AFFILIATE_SECRET');
        return 2;
    }

    const { status, answer } = await report({ url, key, secret }, args[0], Buffer.from(args[1]));

    console.log(`${String(status).padStart(3, '0')}\n${answer}`);
    return status >= 200 && status < 300 ? 0 : 1;
}

process.exitCode = await main(process.argv.slice(2));
