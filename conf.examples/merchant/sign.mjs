#!/usr/bin/env node
// Signs calls to Affiliated, with nothing but Node (18 or newer); by itself it reports an order.
//
//   export AFFILIATE_URL=https://go.example.com/v1/conversions
//   export AFFILIATE_KEY=ak_live_... AFFILIATE_SECRET=aks_live_...
//   ./sign.mjs NP-1001-approved '{"click_id":"...","order_id":"NP-1001","status":"approved","amount":"1250.50","currency":"NPR"}'
//
// The first argument is the Idempotency-Key: one for each event, and the same one whenever that event is sent again.
// Prints status and answer; exit code 0 if the event was accepted. `./sign.mjs --vector` prints the documented signature.

import { createHmac } from 'node:crypto';
import { realpathSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

// The bytes that are sent must be the bytes that are signed: serialise once, use it for both.
export function sign(secret, timestamp, method, pathWithQuery, idempotencyKey, body) {
    return createHmac('sha256', secret)
        .update(`v1\n${timestamp}\n${method}\n${pathWithQuery}\n${idempotencyKey}\n`)
        .update(body)
        .digest('hex');
}

// One call, signed with AFFILIATE_KEY; status 0 if there was no answer.
export async function attempt(method, url, idempotencyKey = '', body = Buffer.alloc(0), type = 'application/json') {
    const { pathname, search } = new URL(url);
    const now = String(Math.floor(Date.now() / 1000));
    const signature = sign(setting('AFFILIATE_SECRET'), now, method, pathname + search, idempotencyKey, body);
    const headers = {
        'Affiliate-Key': setting('AFFILIATE_KEY'),
        'Affiliate-Timestamp': now,
        'Affiliate-Signature': `v1=${signature}`,
    };

    if (idempotencyKey) {
        headers['Idempotency-Key'] = idempotencyKey;
    }
    if (body.length > 0) {
        headers['Content-Type'] = type;
    }

    try {
        const response = await fetch(url, {
            method,
            headers,
            body: body.length > 0 ? body : undefined,
            signal: AbortSignal.timeout(10000),
        });

        return { status: response.status, answer: await response.text() };
    } catch (error) {
        return { status: 0, answer: `no answer: ${error.cause?.message ?? error.message}` };
    }
}

// Whether a call without an answer, or with 5xx, was taken is unknown: under the same key it counts once.
export async function call(...args) {
    let result;

    for (const pause of [1, 2, 4, 8, 0]) {
        result = await attempt(...args);
        if (result.status > 0 && result.status < 500) {
            break;
        }
        await sleep(pause * 1000);
    }

    return result;
}

export function setting(name) {
    if (!process.env[name]) {
        throw new Error(`set ${name}`);
    }

    return process.env[name];
}

export function show({ status, answer }) {
    console.log(`${String(status).padStart(3, '0')}\n${answer}`);
    return status >= 200 && status < 300 ? 0 : 1;
}

function isProgram(url) {
    try {
        return realpathSync(process.argv[1]) === fileURLToPath(url);
    } catch {
        return false; // node -e, and the like
    }
}

// Runs it if it is the program, not what a program imports: what is wrong with the settings is exit code 2.
export async function run(url, main) {
    if (!isProgram(url)) {
        return;
    }

    try {
        process.exitCode = await main(process.argv.slice(2));
    } catch (error) {
        console.error(error.message);
        process.exitCode = 2;
    }
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

    return show(await call('POST', setting('AFFILIATE_URL'), args[0], Buffer.from(args[1])));
}

await run(import.meta.url, main);
